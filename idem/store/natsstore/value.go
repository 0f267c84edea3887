package natsstore

import (
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"time"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/rules"
)

// version is the mark in every value. A store refuses what has a higher one.
const version = 1

// duration is written as time.Duration shows itself: "10s".
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// text may be any bytes; those that stand for themselves in the path of a URL are
// shown, the others are escaped as there.
type text string

func (t text) MarshalText() ([]byte, error) { return []byte(url.PathEscape(string(t))), nil }

func (t *text) UnmarshalText(b []byte) error {
	s, err := url.PathUnescape(string(b))
	*t = text(s)
	return err
}

// recordValue is a record as it stands in the bucket. Its times are counted from the
// message's own, which the server gave it when it stored it: since then it is done or
// dead, since then the lease runs. So no clock but the server's is in it.
type recordValue struct {
	Version     int      `json:"v"`
	State       string   `json:"state"`
	Claim       string   `json:"claim"`
	Attempt     int      `json:"attempt"`
	Spent       int      `json:"spent,omitempty"`
	Expiries    int      `json:"expiries,omitempty"`
	Redrive     int      `json:"redrive,omitempty"`
	Fence       int      `json:"fence,omitempty"`
	ForgotBy    string   `json:"forgot_by,omitempty"`
	BySpend     bool     `json:"by_spend,omitempty"`
	Lease       duration `json:"lease,omitzero"`
	Owner       text     `json:"owner,omitzero"`
	Incarnation uint64   `json:"incarnation,omitempty"`
	Fingerprint text     `json:"fingerprint,omitzero"`
	Result      []byte   `json:"result,omitempty"`
	Keep        duration `json:"keep"`
}

// issuedValue is the registration of an issued token. The times are counted likewise.
type issuedValue struct {
	Version   int      `json:"v"`
	State     string   `json:"state"` // issued, or spent
	CheckIn   duration `json:"check_within,omitzero"`
	CheckedBy string   `json:"checked_by,omitempty"`
	Keep      duration `json:"keep"`
}

const (
	stateIssued = "issued"
	stateSpent  = "spent"
)

// incarnationValue is the last incarnation drawn for a name.
type incarnationValue struct {
	Version     int    `json:"v"`
	Incarnation uint64 `json:"incarnation"`
}

// descriptorValue says how the records of a prefix are laid out. It never expires:
// when it is gone, so are records.
type descriptorValue struct {
	Version int    `json:"v"`
	Layout  string `json:"layout"`
}

const layout = "records"

// maxCount is far more than anything was ever counted, and has room for more.
const maxCount = math.MaxInt / 2

var states = [...]store.State{store.Running, store.Released, store.Done, store.Dead, store.Forgotten}

// encodeRecord writes a record that changed at now, and says for how long it is kept.
func encodeRecord(r *rules.Record, now rules.Instant) (value []byte, keep time.Duration, err error) {
	keep = now.Until(r.Expires)
	v := recordValue{
		Version: version, State: r.State.String(), Claim: r.Claim,
		Attempt: r.Attempt, Spent: r.Spent, Expiries: r.Expiries, Redrive: r.Redrive,
		Fence: r.Fence, ForgotBy: r.ForgotBy, BySpend: r.BySpend,
		Fingerprint: text(r.Fingerprint), Result: r.Result, Keep: duration(keep),
	}
	if r.State == store.Running {
		v.Lease, v.Owner, v.Incarnation = duration(r.Lease), text(r.Owner), r.Incarnation
	}
	value, err = json.Marshal(v)
	return value, keep, err
}

// decodeRecord reads a record that was stored at.
func decodeRecord(value []byte, at rules.Instant) (rules.Record, error) {
	var v recordValue
	if err := decode(value, &v, &v.Version); err != nil {
		return rules.Record{}, err
	}
	r := rules.Record{
		Claim: v.Claim, Attempt: v.Attempt, Spent: v.Spent, Expiries: v.Expiries, Redrive: v.Redrive,
		Fence: v.Fence, ForgotBy: v.ForgotBy, BySpend: v.BySpend,
		At: at, Renewed: at, Lease: time.Duration(v.Lease), Owner: string(v.Owner), Incarnation: v.Incarnation,
		Fingerprint: string(v.Fingerprint), Result: v.Result, Expires: at.Plus(time.Duration(v.Keep)),
	}
	for _, s := range states {
		if v.State == s.String() {
			r.State = s
		}
	}
	if r.State == store.Absent || min(v.Attempt, v.Spent, v.Expiries, v.Redrive, v.Fence) < 0 || min(v.Lease, v.Keep) < 0 ||
		max(v.Attempt, v.Spent, v.Expiries) > maxCount {
		return rules.Record{}, store.ErrUnreadable
	}
	return r, nil
}

func encodeIssued(i *rules.Issued, now rules.Instant) (value []byte, keep time.Duration, err error) {
	keep = now.Until(i.Expires)
	v := issuedValue{Version: version, State: stateIssued, CheckIn: duration(now.Until(i.CheckBy)), Keep: duration(keep)}
	if i.CheckedBy != "" {
		v.State, v.CheckedBy, v.CheckIn = stateSpent, i.CheckedBy, 0
	}
	value, err = json.Marshal(v)
	return value, keep, err
}

func decodeIssued(value []byte, at rules.Instant) (rules.Issued, error) {
	var v issuedValue
	if err := decode(value, &v, &v.Version); err != nil {
		return rules.Issued{}, err
	}
	if v.Keep < 0 || v.State != stateIssued && v.State != stateSpent || (v.State == stateSpent) != (v.CheckedBy != "") {
		return rules.Issued{}, store.ErrUnreadable
	}
	return rules.Issued{
		Known: true, CheckBy: at.Plus(time.Duration(v.CheckIn)), CheckedBy: v.CheckedBy, Expires: at.Plus(time.Duration(v.Keep)),
	}, nil
}

// decode reads a value, of which mark is the version. A newer one may be of another
// shape altogether.
func decode(value []byte, v any, mark *int) error {
	err := json.Unmarshal(value, v)
	if err != nil {
		var other struct {
			Version int `json:"v"`
		}
		if json.Unmarshal(value, &other) == nil && other.Version > version {
			return store.ErrNewer
		}
		return fmt.Errorf("%w: %w", store.ErrUnreadable, err)
	}
	switch {
	case *mark > version:
		return store.ErrNewer
	case *mark != version:
		return store.ErrUnreadable
	}
	return nil
}

func encodeIncarnation(n uint64) []byte {
	return fmt.Appendf(nil, `{"v":%d,"incarnation":%d}`, version, n)
}

func decodeIncarnation(value []byte) (uint64, error) {
	var v incarnationValue
	if err := decode(value, &v, &v.Version); err != nil {
		return 0, err
	}
	if v.Incarnation == math.MaxUint64 { // none follows it
		return 0, store.ErrUnreadable
	}
	return v.Incarnation, nil
}
