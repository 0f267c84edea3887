package model

// Broker is a kind of broker, with the constructor that is used over it.
type Broker byte

// The brokers.
const (
	Kafka      Broker = 'K' // over a group Reader, which does not say when a partition goes away
	KafkaGroup Broker = 'G' // owning the membership: commits carry their generation
	JetStream  Broker = 'J'
	RabbitMQ   Broker = 'R'
)

func (b Broker) isKafka() bool { return b == Kafka || b == KafkaGroup }

// keepsHandlers tells whether handlers go on when their lane has ended.
func (b Broker) keepsHandlers() bool { return b == Kafka || b == RabbitMQ }

// Item is what a message is about: a payload and its token. Two items with one token are
// a producer's bug, which fingerprints find.
type Item struct {
	Token  int
	FP     uint8 // of the payload; used with Fingerprints
	Part   int   // Kafka
	Lane   int   // by key, within a partition or a consumer
	Poison bool  // the handler kills its process
	Forged bool  // its token was not issued
}

// Policy is how the consumers handle messages.
type Policy uint8

// The policies.
const (
	AtLeastOnce Policy = iota
	Transactional
	AtMostOnce
	Shadow
	FailOpen
)

// Faults are what may happen besides, each as often as Config.Faults says for all.
type Faults uint32

// The faults.
const (
	Crash       Faults = 1 << iota // a process dies
	LostReply                      // the store executes, its answer is lost, the command is sent again
	Lapse                          // a lease runs out though its holder lives: a pause, a cut
	Rebalance                      // Kafka: a partition goes to another process
	AckLost                        // an ack does not arrive
	AckWait                        // JetStream: delivered again though it is held
	ChanLoss                       // RabbitMQ: the channel is closed
	ConfirmLost                    // the dead-letter copy is stored, and the confirmation lost
	HandlerErr                     // the handler fails
	Permanent                      // it fails for good
	Later                          // it returns RetryAfter
	Stop                           // a process is told to stop
	Delay                          // a command to the store is executed late, after others
	Held                           // RabbitMQ: a message is held for too long, and goes back
	Expire                         // the registration of an issued token expires

	brokerFaults = Rebalance | AckLost | AckWait | ChanLoss | ConfirmLost
	usual        = Crash | LostReply | Lapse | brokerFaults | HandlerErr
)

// Config is a world to explore.
type Config struct {
	Name string
	Says string // in a sentence, what it is about

	Broker  Broker
	Procs   []int // the group of each process
	Names   []int // WithInstance, of each process; nil: none
	Items   []Item
	Publish []int // which items are published, in order; nil: each once
	Parts   []int // to which partitions; nil: the items' own

	Policy       Policy
	Fingerprints bool
	IssuedOnly   bool
	Ignore       bool // the handler ignores that its context was cancelled
	Budget       uint8
	Window       int // of claims ahead
	Workers      int // of a lane
	Hold         int // deliveries held by a lane; zero: as many as the engine would
	Limit        uint8
	ByKey        bool // lanes by key, where the broker is not Kafka
	BareChannel  bool // RabbitMQ over the caller's channel: its loss ends Run
	Checkers     bool // two callers of Check ask for the first token

	May       Faults
	Faults    uint8 // how many, of all kinds together
	Redrives  uint8
	Forgets   uint8
	Failovers uint8 // to nothing, or with Lagging to what a replica had
	Lagging   bool

	NothingSpent bool // no budget may be spent: nothing happens that would
	InnocentLive bool // only poison may be dead-lettered
	NoDoubles    bool // no window may be entered
	MayLose      bool // at most once, with faults

	Bug      Bug
	Findings []string // that a bug has to show, one of them at least

	groups, tokens int
	swaps          [][2]int
}

// prepared fills in what follows from the rest.
func (c *Config) prepared() *Config {
	d := *c
	d.Workers, d.Budget = max(d.Workers, 1), max(d.Budget, 1)
	if d.Publish == nil {
		for i := range d.Items {
			d.Publish = append(d.Publish, i)
		}
	}
	for _, g := range d.Procs {
		d.groups = max(d.groups, g+1)
	}
	for _, it := range d.Items {
		d.tokens = max(d.tokens, it.Token+1)
	}
	if d.Hold == 0 {
		d.Hold = d.Workers + max(2*d.Window, 1)
	}
	if d.fewDeliveries() {
		d.Hold, d.Window = d.Workers, 0
	}
	if d.Budget == 1 || d.Policy == AtMostOnce {
		d.Window = 0
	}
	if d.Names == nil {
		for a := range d.Procs {
			for b := range a {
				if d.Procs[a] == d.Procs[b] {
					d.swaps = append(d.swaps, [2]int{b, a})
				}
			}
		}
	}
	return &d
}

func (c *Config) may(f Faults) bool { return c.May&f != 0 }

// fewDeliveries: the broker drops a message after Limit deliveries.
func (c *Config) fewDeliveries() bool { return c.Limit > 0 }

// redelivers tells whether failed messages go back to the broker for their backoff.
func (c *Config) redelivers() bool {
	return c.Broker == JetStream && c.Workers > 1 && !c.fewDeliveries()
}

func (c *Config) maxExpiries() uint8 { return max(min(2, c.Budget-1), 1) }

func (c *Config) name(p int) uint8 {
	if c.Names == nil {
		return 0
	}
	return uint8(c.Names[p])
}

func (c *Config) item(s *State, sl *slot) int { return int(s.M[sl.Msg-1].Item) }

func (c *Config) token(s *State, sl *slot) int { return c.Items[c.item(s, sl)].Token }

func (c *Config) initial() *State {
	s := &State{}
	for k, i := range c.Publish {
		part := c.Items[i].Part
		if c.Parts != nil {
			part = c.Parts[k]
		}
		s.M[s.NM] = message{Item: uint8(i), Part: uint8(part)}
		s.NM++
	}
	for _, it := range c.Items {
		if !it.Forged && (c.IssuedOnly || c.Checkers) {
			s.Issued[it.Token].Known = true
		}
	}
	for p := range c.Procs {
		s.P[p].Up = true
		if c.Names != nil {
			s.P[p].Inc = s.newIncarnation()
		}
	}
	return s
}

// Bug is planted, for the checks to find.
type Bug uint8

// The bugs.
const (
	NoBug                 Bug = iota
	AckBeforeCommit           // a message is acked when its handler has returned, before that is recorded
	InProgressIsDone          // an answer "in progress" is taken for "done"
	CommitsOverGap            // Kafka: the offset passes a message that is not done
	ReleaseUnfenced           // a Release ends another's claim
	CommitUnfenced            // a Commit ends another's claim
	RepeatRefused             // a repeated command is answered as if it were a second one
	BuryBeforePost            // dead is recorded before the copy is confirmed
	NoClock                   // a handler is started though its lease has run out
	HeaderRedrive             // a copy's redrive number counts from the message's, not from the record's
	SharedOutcome             // a repeat in the lane is acked with the first, whatever became of that
	NoGiveBack                // claims ahead are kept while the lane waits
	AttemptRestarts           // a Release sets the attempts back
	ReleaseCountsTwice        // a repeated Release spends again
	ForgetUnfenced            // Forget does not fence the claims from before
	NoRunSet                  // a guard starts a token beside its own earlier run of it
	ConflictIsDone            // another payload is taken for a repeat
	UnknownIsDropped          // a token that was not issued is acked
	SettlesAnywhere           // RabbitMQ: a late ack goes to the new channel, where its tag is another message's
	CommitsAnyGeneration      // KafkaGroup: a late commit is taken
	SolitudeIgnored           // a token whose processes died is claimed beside others
	FailOpenAcksUnhandled     // FailOpen acks what it did not handle
	EffectOutside             // the effect is not in the transaction of its completion
	AckBeforePost             // a message is acked before its dead-letter copy is confirmed
	CheckTwice                // a Check passes though another has

	bugs
)
