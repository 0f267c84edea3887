package model

import "slices"

// Brokers lists those that are modelled.
var brokers = []Broker{Kafka, KafkaGroup, JetStream, RabbitMQ}

// Configs are the worlds in which the promise holds.
func Configs() []Config {
	one := []Item{{}}
	two := []Item{{}, {Token: 1}}
	base := Config{Procs: []int{0, 0}, Items: one, Budget: 2, Window: 1, May: usual, Faults: 2}
	var all []Config
	add := func(name, says string, change func(*Config)) {
		for _, b := range brokers {
			c := base
			c.Name, c.Says, c.Broker = name+"-"+string(b), says, b
			change(&c)
			all = append(all, c)
		}
	}
	only := func(b Broker, name, says string, change func(*Config)) {
		c := base
		c.Name, c.Says, c.Broker = name+"-"+string(b), says, b
		change(&c)
		all = append(all, c)
	}

	add("one", "One message, two processes, every fault and every end of a handler.", func(c *Config) {
		c.May |= Permanent | Later | Stop | Held
		c.Ignore = true
	})
	add("late", "Commands to the store are executed late, after others.", func(c *Config) { c.May |= Delay | Stop })
	add("calm", "Lost replies and rebalances only: no budget may be spent, no effect land again.", func(c *Config) {
		c.May = LostReply | brokerFaults | Stop
		c.Faults, c.NothingSpent, c.NoDoubles = 4, true, true
	})
	add("outage", "One process whose leases run out, as in a store outage: no budget may be spent.", func(c *Config) {
		c.May, c.Procs, c.NothingSpent = Lapse|LostReply, []int{0}, true
		c.Faults = 3
	})
	add("twice", "The same message was published twice.", func(c *Config) { c.Publish = []int{0, 0} })
	add("ahead", "Three messages, claims made two ahead.", func(c *Config) {
		c.Items = []Item{{}, {Token: 1}, {Token: 2}}
		c.Window, c.Procs, c.Hold = 2, []int{0}, 3
		c.May |= Stop
	})
	add("ahead2", "Two messages, claims made ahead, two processes.", func(c *Config) { c.Items = two; c.Faults = 1 })
	add("crossed", "Two tokens, each twice, so that two lanes can wait for each other.", func(c *Config) {
		c.Items = two
		c.Publish, c.Parts = []int{0, 1, 1, 0}, []int{0, 1, 0, 1}
		c.May, c.Faults = Crash|Rebalance|AckWait|ChanLoss, 1
	})
	add("redrive", "Dead letters are moved back.", func(c *Config) {
		c.May |= Permanent
		c.Redrives = 2
	})
	add("forget", "An operator has tokens forgotten.", func(c *Config) { c.Forgets = 1 })
	add("forget-late", "The same, where commands to the store are executed late, after others.", func(c *Config) { c.Forgets, c.May = 1, Lapse|Delay|HandlerErr })
	add("groups", "Two groups read the same messages; dead letters of each are moved back.", func(c *Config) {
		c.Procs = []int{0, 1}
		c.May = (usual | Permanent) &^ HandlerErr
		c.Redrives, c.Faults = 2, 1
	})
	add("sql", "The effect commits with the completion: never twice, whatever fails.", func(c *Config) {
		c.Policy = Transactional
		c.May |= Permanent | Stop
		c.Redrives = 1
	})
	add("once", "At most once: never twice, and lost only where something failed.", func(c *Config) {
		c.Policy, c.MayLose = AtMostOnce, true
		c.May |= Stop | Delay
		c.Faults = 3
	})
	add("once-calm", "At most once, where no process dies: nothing is lost either.", func(c *Config) {
		c.Policy, c.May, c.Faults = AtMostOnce, LostReply|brokerFaults|HandlerErr|Stop, 3
	})
	add("once-redrive", "At most once, and dead letters are moved back: they are handled again, once.", func(c *Config) {
		c.Policy, c.May, c.Redrives = AtMostOnce, LostReply|brokerFaults|HandlerErr|Stop, 2
		c.Procs = []int{0}
	})
	add("once-redrive2", "The same, and two processes.", func(c *Config) {
		c.Policy, c.May, c.Redrives, c.Faults = AtMostOnce, AckWait|Rebalance|ChanLoss|HandlerErr, 1, 1
	})
	add("empty", "The store loses everything, once.", func(c *Config) { c.Failovers = 1; c.May |= Delay })
	add("lagging", "The store fails over to a replica that lags.", func(c *Config) {
		c.Failovers, c.Lagging = 1, true
		c.May |= Permanent
		c.Faults = 1
	})
	add("lagging-sql", "The same with the effect in the transaction: it is forgotten with its completion, after the ack.", func(c *Config) {
		c.Policy, c.Failovers, c.Lagging, c.Faults = Transactional, 1, true, 1
	})
	add("issued", "Only issued tokens are admitted; one message's was forged, and registrations expire.", func(c *Config) {
		c.Items = []Item{{}, {Token: 1, Forged: true}}
		c.IssuedOnly, c.Window, c.Faults = true, 1, 1
		c.May |= Expire
		c.Redrives = 1
	})
	add("conflict", "Two payloads bear one token, with fingerprints.", func(c *Config) {
		c.Items = []Item{{FP: 1}, {FP: 2}}
		c.Fingerprints = true
	})
	add("conflict-redrive", "The same, and dead letters are moved back.", func(c *Config) {
		c.Items = []Item{{FP: 1}, {FP: 2}}
		c.Fingerprints, c.Faults, c.Redrives = true, 1, 1
	})
	add("failopen", "Messages are handled without a claim when the store has been away for long.", func(c *Config) {
		c.Policy = FailOpen
		c.May |= Stop
	})
	add("shadow", "Duplicates are handled on purpose: nothing may be lost.", func(c *Config) { c.Policy, c.Faults = Shadow, 1 })
	add("instance", "Processes have names, and take over from their dead predecessors.", func(c *Config) {
		c.Names = []int{1, 2}
		c.May |= Stop
	})
	add("poison", "A message kills its process each time: its neighbour is handled.", func(c *Config) {
		c.Items = []Item{{Poison: true}, {Token: 1}}
		c.May, c.Faults, c.Procs, c.Budget, c.InnocentLive = 0, 0, []int{0, 0}, 3, true
	})
	add("poison2", "Two messages kill their process, the third is innocent.", func(c *Config) {
		c.Items = []Item{{Poison: true}, {Token: 1, Poison: true}, {Token: 2}}
		c.May, c.Faults, c.Procs, c.Budget, c.InnocentLive = 0, 0, []int{0}, 3, true
		c.Window = 2
	})
	only(Kafka, "check", "Two callers ask Check for one token.", func(c *Config) {
		c.Items, c.Publish, c.Procs = one, []int{}, []int{0}
		c.Checkers, c.MayLose, c.May, c.Faults, c.Failovers = true, true, LostReply|Delay|Expire, 4, 1
	})
	only(Kafka, "same-name", "Two processes that live at once share a name.", func(c *Config) { c.Names = []int{1, 1} })
	only(Kafka, "lanes", "One partition, two lanes by key.", func(c *Config) {
		c.Items = []Item{{}, {Token: 1, Lane: 1}, {Token: 2}}
		c.Procs, c.Hold = []int{0}, 3
	})
	only(KafkaGroup, "lanes", "One partition, two lanes by key.", func(c *Config) {
		c.Items = []Item{{}, {Token: 1, Lane: 1}, {Token: 2}}
		c.Procs, c.Hold = []int{0}, 3
	})
	for _, b := range []Broker{JetStream, RabbitMQ} {
		only(b, "side-by-side", "A lane with two workers.", func(c *Config) {
			c.Items, c.Workers = two, 2
			c.Publish = []int{0, 1, 0}
			c.Procs = []int{0}
		})
		only(b, "keys", "Lanes by key, in order within each.", func(c *Config) {
			c.Items = []Item{{}, {Token: 1, Lane: 1}}
			c.ByKey, c.Faults = true, 1
		})
		only(b, "limit", "The broker drops a message after three deliveries: fewer faults lose nothing.", func(c *Config) {
			c.Limit, c.Faults = 3, 2
			c.May |= Stop
		})
	}
	only(RabbitMQ, "bare", "Over the caller's channel, whose loss ends Run.", func(c *Config) { c.BareChannel = true })
	return all
}

// Bugs are worlds with a planted bug, each of which has to be found.
func Bugs() []Config {
	base := map[string]Config{}
	for _, c := range Configs() {
		base[c.Name] = c
	}
	var all []Config
	add := func(bug Bug, name, from, says string, finds []string, change func(*Config)) {
		c := base[from]
		c.Bug, c.Name, c.Says, c.Findings = bug, "bug-"+name+"-"+string(c.Broker), says, finds
		if change != nil {
			change(&c)
		}
		all = append(all, c)
	}
	const (
		lost     = "lost: neither an effect nor a dead letter, and nobody will deliver it again"
		cause    = "a message was acked without a cause"
		again    = "a handler started after the completion was recorded"
		spent    = "budget was spent though nothing happened that spends"
		overdone = "more budget is spent than handlers failed and claims expired"
	)
	for _, b := range brokers {
		n := "-" + string(b)
		add(AckBeforeCommit, "ack-before-commit", "one"+n, "A message is acked before its completion is recorded.", []string{cause}, nil)
		add(AckBeforePost, "ack-before-post", "one"+n, "A message is acked before its dead-letter copy is confirmed.", []string{lost, cause}, nil)
		add(InProgressIsDone, "in-progress-is-done", "one"+n, "In progress elsewhere is taken for done.", []string{cause, lost}, nil)
		add(ReleaseUnfenced, "release-unfenced", "late"+n, "A Release ends whoever's claim.", []string{"a Release was taken that is not the holder's"}, nil)
		add(CommitUnfenced, "commit-unfenced", "one"+n, "A Commit ends whoever's claim.", []string{"a Commit was taken while another held the claim"}, nil)
		add(RepeatRefused, "spend-repeat-refused", "once-calm"+n, "The answer to a repeated Spend is that it was spent.", []string{lost}, nil)
		add(BuryBeforePost, "bury-before-post", "one"+n, "Dead is recorded before the copy is confirmed.", []string{lost, cause}, nil)
		add(AttemptRestarts, "attempt-restarts", "one"+n, "A release sets the attempt number back.", []string{"an attempt number was given again, or a lower one"}, nil)
		add(ReleaseCountsTwice, "release-counts-twice", "one"+n, "A repeated Release spends twice.", []string{overdone}, func(c *Config) { c.Budget = 3 })
		add(ForgetUnfenced, "forget-unfenced", "forget"+n, "Forget does not fence the claims from before.", []string{"a completion was taken of a claim from before Forget"}, nil)
		add(ConflictIsDone, "conflict-is-done", "conflict"+n, "Another payload under the same token is taken for a repeat.", []string{lost, cause}, nil)
		add(UnknownIsDropped, "unknown-is-dropped", "issued"+n, "A token that was not issued is acked.", []string{lost, cause}, nil)
		add(FailOpenAcksUnhandled, "failopen-unhandled", "failopen"+n, "FailOpen acks without handling.", []string{cause, lost}, nil)
		add(EffectOutside, "effect-outside", "sql"+n, "The effect is not in the transaction of its completion.", []string{"an effect landed again where none may: " + winDied}, nil)
	}
	for _, b := range []Broker{Kafka, KafkaGroup, RabbitMQ} {
		add(NoRunSet, "no-run-set", "one-"+string(b), "A guard starts a token beside its own earlier run.", []string{"one process ran a token twice at a time"}, func(c *Config) {
			c.Procs, c.May, c.Budget = []int{0}, Rebalance|ChanLoss|Lapse, 3
		})
	}
	for _, b := range []Broker{Kafka, KafkaGroup} {
		add(SolitudeIgnored, "solitude-ignored", "poison2-"+string(b), "A token that killed its processes is claimed beside others.", []string{"an innocent message was dead-lettered"}, nil)
	}
	for _, b := range []Broker{Kafka, KafkaGroup, JetStream} {
		add(NoClock, "no-clock", "one-"+string(b), "A handler starts though its lease has run out.", []string{again}, nil)
	}
	for _, b := range []Broker{JetStream, RabbitMQ} {
		add(HeaderRedrive, "header-redrive", "redrive-"+string(b), "The copy's redrive number does not come from the record.", []string{lost}, func(c *Config) {
			c.May, c.Faults = Permanent|HandlerErr|AckLost, 1
		})
	}
	add(RepeatRefused, "begin-repeat-refused", "outage-K", "A repeated Begin meets its own claim.", []string{spent}, nil)
	add(RepeatRefused, "check-repeat-refused", "check-K", "A repeated Check is refused.", []string{"no Check passed: the first was taken for a duplicate"}, nil)
	add(CheckTwice, "check-twice", "check-K", "Check passes though another has.", []string{"Check passed twice"}, nil)
	add(CommitsOverGap, "gap", "lanes-K", "The offset passes a message that is not done.", []string{cause}, nil)
	add(CommitsOverGap, "gap", "lanes-G", "The offset passes a message that is not done.", []string{cause}, nil)
	add(CommitsAnyGeneration, "any-generation", "one-G", "A late commit of another generation is taken.", []string{"a late commit moved the offset back"}, func(c *Config) {
		c.Items = []Item{{}, {Token: 1}}
		c.May, c.Faults = Rebalance, 1
	})
	add(SettlesAnywhere, "settles-anywhere", "ahead-R", "A late ack is sent over a new channel.", []string{cause, lost}, nil)
	add(SharedOutcome, "shared-outcome", "redrive-K", "A repeat is acked with the first, whatever became of it.", []string{lost, cause}, nil)
	add(NoGiveBack, "no-give-back", "crossed-K", "Claims made ahead are kept while the lane waits.", []string{stuck}, func(c *Config) { c.May, c.Faults, c.Window = 0, 0, 2 })
	return slices.Clip(all)
}
