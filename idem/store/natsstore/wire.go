package natsstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/idemq/idemq/idem/store/rules"
)

const (
	// JetStream drops what waits when 10,000 requests wait for it. So window is how many of
	// one call are under way at once, and mostRequests how many of a store; the few that are
	// asked one at a time do not count.
	window       = 256
	mostRequests = 16 * window

	// A request without an answer is given up, and what it did is asked for, after half
	// of the time that is left, but not before shortest and not after longest.
	shortest = 100 * time.Millisecond
	longest  = 2 * time.Second

	// slack is added to the time that the server keeps a message: each server expires
	// by its own clock, and none shall do so before the record's time. The record's
	// own expiry is exact.
	slack = 5 * time.Second

	// maxKeep bounds it: the server adds it to its clock, in nanoseconds.
	maxKeep = 50 * 365 * 24 * time.Hour
)

// wire is how a bucket is spoken to.
type wire struct {
	nc     *nats.Conn
	bucket string
	stream string
	api    string // what the subjects of the JetStream API begin with
	put    string // what the subjects that keys are published to begin with
	kv     string // what they begin with in the stream

	heard    *atomic.Uint64      // one more than the reconnects before the last answer
	underWay *semaphore.Weighted // requests

	infoSubject, getSubject string
}

func newWire(js jetstream.JetStream, bucket string) wire {
	o := js.Options()
	api := jetstream.DefaultAPIPrefix
	switch {
	case o.Domain != "":
		api = "$JS." + o.Domain + ".API."
	case o.APIPrefix != "":
		api = strings.TrimSuffix(o.APIPrefix, ".") + "."
	}
	w := wire{
		nc: js.Conn(), bucket: bucket, stream: "KV_" + bucket, api: api, kv: "$KV." + bucket + ".",
		heard: &atomic.Uint64{}, underWay: semaphore.NewWeighted(mostRequests),
	}
	// As the client's own key-value store does: elsewhere a key is published through
	// the same mapping or import as the API.
	if w.put = w.kv; api != jetstream.DefaultAPIPrefix {
		w.put = api + w.kv
	}
	w.infoSubject = api + "STREAM.INFO." + w.stream
	w.getSubject = api + "STREAM.MSG.GET." + w.stream
	return w
}

// request is one message, and what came of it.
type request struct {
	msg    *nats.Msg
	answer []byte
	err    error
}

// exchange sends requests, many at a time, and returns when each has its answer or
// its error. Those of other calls may have to be answered first.
func (w *wire) exchange(ctx context.Context, reqs []*request) {
	for wave := range slices.Chunk(reqs, window) {
		n := int64(len(wave))
		if err := w.underWay.Acquire(ctx, n); err != nil {
			for _, r := range wave {
				r.err = err
			}
			continue
		}
		w.wave(ctx, wave)
		w.underWay.Release(n)
	}
}

func (w *wire) wave(ctx context.Context, reqs []*request) {
	d := longest
	if end, ok := ctx.Deadline(); ok {
		d = min(max(time.Until(end)/2, shortest), longest)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	before := w.told()
	var wg sync.WaitGroup
	for _, r := range reqs[1:] {
		wg.Go(func() { w.send(ctx, r, before) })
	}
	w.send(ctx, reqs[0], before)
	wg.Wait()
	if slices.ContainsFunc(reqs, func(r *request) bool { return r.err == nil }) {
		w.heard.Store(before.conns)
	}
}

// told is what a connection had been told when something was sent.
type told struct {
	err   error  // the last
	conns uint64 // one more than its reconnects
}

func (w *wire) told() told {
	return told{err: w.nc.LastError(), conns: w.nc.Stats().Reconnects + 1}
}

func (w *wire) send(ctx context.Context, r *request, before told) {
	m, err := w.nc.RequestMsgWithContext(ctx, r.msg)
	if err != nil {
		r.err = w.unanswered(r.msg.Subject, before, err)
		return
	}
	r.answer = m.Data
}

// ask sends one request.
func (w *wire) ask(ctx context.Context, r *request) { w.wave(ctx, []*request{r}) }

// unanswered tells a missing permission from other reasons for no answer: the server
// does not answer what it forbids, but tells the connection. What it told before is not
// the reason, but for the inbox, which is subscribed to once in a connection's life: until
// an answer came through it.
func (w *wire) unanswered(subject string, before told, err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return errNobody
	case errors.Is(err, nats.ErrConnectionClosed):
		return closedForGood()
	}
	if said := w.nc.LastError(); errors.Is(said, nats.ErrPermissionViolation) {
		// A server that is of the domain takes the prefix away before it looks.
		bare, api := strings.CutPrefix(subject, w.api)
		mapped := bare
		if api && !strings.HasPrefix(bare, "$KV.") {
			mapped = jetstream.DefaultAPIPrefix + bare
		}
		// Each time that it is told is an error of its own.
		fresh, deaf := said != before.err, w.heard.Load() != before.conns //nolint:errorlint // see above
		names := func(s string) bool { return strings.Contains(said.Error(), strconv.Quote(s)) }
		if fresh && (names(subject) || names(mapped)) ||
			(fresh || deaf) && strings.Contains(said.Error(), "for Subscription to") && strings.Contains(said.Error(), w.inbox()) {
			return &refusal{cause: said, cure: w.permissions()}
		}
	}
	return err
}

// closedForGood is what every call meets when the connection will not come back.
func closedForGood() error {
	return &refusal{
		cause: fmt.Errorf("%w: it is closed for good", nats.ErrConnectionClosed),
		cure:  "start the process again, and connect with nats.MaxReconnects(-1), so that the client never gives up",
	}
}

func (w *wire) inbox() string {
	if p := w.nc.Opts.InboxPrefix; p != "" {
		return p
	}
	return strings.TrimSuffix(nats.InboxPrefix, ".")
}

// permissions is what a user of the bucket needs, in words.
func (w *wire) permissions() string {
	return fmt.Sprintf("allow the user to publish to %s, %s, %s> and, where it is to create the bucket, %sSTREAM.CREATE.%s, and to subscribe to %s.>",
		w.infoSubject, w.getSubject, w.put, w.api, w.stream, w.inbox())
}

// What an answer can say, beside success.
var (
	errNobody   = errors.New("nobody answers: JetStream is not enabled, the bucket is gone, or its leader is being elected")
	errMissing  = errors.New("the bucket does not exist")
	errConflict = errors.New("the key was changed by somebody else")
	errNoRoom   = errors.New("the server has no room")
	errTooLarge = errors.New("larger than the server takes")
)

// refusal is an answer that will be the same when it is asked for again.
type refusal struct {
	cause error
	cure  string
}

func (r *refusal) Error() string {
	if r.cure == "" {
		return r.cause.Error()
	}
	return r.cause.Error() + " (" + r.cure + ")"
}

func (r *refusal) Unwrap() error { return r.cause }

// Codes of JetStream's errors that package jetstream has no name for.
const (
	codeAccountFull   jetstream.ErrorCode = 10002
	codeServerFull    jetstream.ErrorCode = 10023
	codeMemoryFull    jetstream.ErrorCode = 10028
	codeStorageFull   jetstream.ErrorCode = 10047
	codeTooLarge      jetstream.ErrorCode = 10054
	codeStoreFailed   jetstream.ErrorCode = 10077
	codeWrongStream   jetstream.ErrorCode = 10060
	codeNoTTL         jetstream.ErrorCode = 10166
	codeSealed        jetstream.ErrorCode = 10109
	codeNotForAccount                     = jetstream.JSErrCodeJetStreamNotEnabledForAccount
	codeNotEnabled                        = jetstream.JSErrCodeJetStreamNotEnabled
	codeNoPeers       jetstream.ErrorCode = 10005
	codeNotClustered  jetstream.ErrorCode = 10074
)

// said is the error that an answer holds, as one of those above where it is known.
func said(e *jetstream.APIError) error {
	if e == nil {
		return nil
	}
	switch e.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return errConflict
	case jetstream.JSErrCodeStreamNotFound:
		return errMissing
	case codeAccountFull, codeServerFull, codeMemoryFull, codeStorageFull:
		return fmt.Errorf("%w: %w", errNoRoom, e)
	case codeTooLarge:
		return fmt.Errorf("%w: %w", errTooLarge, e)
	case codeStoreFailed:
		switch {
		case strings.HasPrefix(e.Description, "maximum "):
			return fmt.Errorf("%w: %w", errNoRoom, e)
		case strings.Contains(e.Description, "too large"):
			return fmt.Errorf("%w: %w", errTooLarge, e)
		}
	case codeNoTTL:
		return &refusal{cause: e, cure: cureTTL}
	case codeSealed:
		return &refusal{cause: e, cure: "a sealed bucket takes no writes; use another"}
	case codeNotForAccount, codeNotEnabled:
		return &refusal{cause: e, cure: "enable JetStream for the account of the client's user"}
	}
	return e
}

// envelope is what every answer of JetStream may have.
type envelope struct {
	Error *jetstream.APIError `json:"error"`
}

func (w *wire) infoRequest() *request {
	return &request{msg: &nats.Msg{Subject: w.infoSubject}}
}

// info is what the leader of the bucket's stream says of it, and the time there.
type info struct {
	envelope
	Now     time.Time `json:"ts"`
	Created time.Time `json:"created"`
	Limits  struct {
		Replicas int   `json:"num_replicas"`
		MaxBytes int64 `json:"max_bytes"`
		MaxMsgs  int64 `json:"max_msgs"`
		MaxSize  int64 `json:"max_msg_size"`
	} `json:"config"`
	State struct {
		Msgs      uint64    `json:"messages"`
		Bytes     uint64    `json:"bytes"`
		FirstSeq  uint64    `json:"first_seq"`
		FirstTime time.Time `json:"first_ts"`
		LastSeq   uint64    `json:"last_seq"`
	} `json:"state"`
}

// details is the rest of it.
type details struct {
	info    info
	Config  jetstream.StreamConfig `json:"config"`
	Cluster *jetstream.ClusterInfo `json:"cluster"`
}

func (r *request) details() (*details, error) {
	i, err := r.info()
	if err != nil {
		return nil, err
	}
	d := &details{info: *i}
	return d, json.Unmarshal(r.answer, d)
}

func (r *request) info() (*info, error) {
	if r.err != nil {
		return nil, r.err
	}
	i := &info{}
	if err := json.Unmarshal(r.answer, i); err != nil {
		return nil, fmt.Errorf("the answer to STREAM.INFO: %w", err)
	}
	return i, said(i.Error)
}

func (w *wire) getRequest(key string) *request {
	// Keys need no escapes in JSON.
	return &request{msg: &nats.Msg{Subject: w.getSubject, Data: []byte(`{"last_by_subj":"` + w.kv + key + `"}`)}}
}

// found is what stands under a key. The zero value is nothing.
type found struct {
	seq   uint64 // of the last message, zero if there was none
	at    rules.Instant
	value []byte
	gone  bool // a marker, or nothing
}

func (r *request) found() (found, error) {
	if r.err != nil {
		return found{}, r.err
	}
	var v struct {
		envelope
		Message struct {
			Seq     uint64    `json:"seq"`
			Time    time.Time `json:"time"`
			Data    []byte    `json:"data"`
			Headers []byte    `json:"hdrs"`
		} `json:"message"`
	}
	if err := json.Unmarshal(r.answer, &v); err != nil {
		return found{}, fmt.Errorf("the answer to STREAM.MSG.GET: %w", err)
	}
	if v.Error != nil {
		if v.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound {
			return found{gone: true}, nil
		}
		return found{}, said(v.Error)
	}
	m := &v.Message
	return found{
		seq: m.Seq, at: rules.Instant(m.Time.UnixNano()), value: m.Data,
		gone: bytes.Contains(m.Headers, []byte("\r\nKV-Operation:")) || bytes.Contains(m.Headers, []byte("\r\nNats-Marker-Reason:")),
	}, nil
}

// never is for what does not expire.
const never = time.Duration(-1)

// putRequest writes a key if its last message is still the one with the sequence.
func (w *wire) putRequest(key string, value []byte, seq uint64, keep time.Duration) *request {
	h := nats.Header{jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(seq, 10)}}
	if keep != never {
		h[jetstream.MsgTTLHeader] = []string{ttl(keep)}
	}
	return &request{msg: &nats.Msg{Subject: w.put + key, Header: h, Data: value}}
}

// size is that of a message as limits count it: its headers and its value.
func (r *request) size() int64 {
	return int64(r.msg.Size() - len(r.msg.Subject) - len(r.msg.Reply))
}

// ttl is in whole seconds, rounded up.
func ttl(keep time.Duration) string {
	keep = min(max(keep, 0), maxKeep) + slack
	return strconv.FormatInt(int64((keep+time.Second-1)/time.Second), 10)
}

// proofRequest writes nothing of consequence, if the last message of another key is
// still the one with the sequence.
func (w *wire) proofRequest(proof, key string, seq uint64) *request {
	return &request{msg: &nats.Msg{
		Subject: w.put + proof,
		Header: nats.Header{
			jetstream.ExpectedLastSubjSeqHeader:     {strconv.FormatUint(seq, 10)},
			jetstream.ExpectedLastSubjSeqSubjHeader: {w.kv + key},
			jetstream.MsgTTLHeader:                  {"3600"},
		},
	}}
}

// seq is the sequence under which a put was stored.
func (r *request) seq() (uint64, error) {
	if r.err != nil {
		if errors.Is(r.err, nats.ErrMaxPayload) {
			return 0, fmt.Errorf("%w: %w", errTooLarge, r.err)
		}
		return 0, r.err
	}
	var v struct {
		envelope
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(r.answer, &v); err != nil {
		return 0, fmt.Errorf("the acknowledgement of a write: %w", err)
	}
	if v.Error == nil && v.Seq == 0 {
		return 0, errors.New("the acknowledgement of a write has no sequence")
	}
	return v.Seq, said(v.Error)
}
