package consumers

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store"
)

// errNoToken: a message names itself in no way that is trusted.
var errNoToken = errors.New("the message has no token: let its producer stamp one, or name where it is with TokenFrom")

// TokenIn returns the token in a message's header, if it has one that is valid.
func TokenIn(m Message) (string, bool) {
	token, found, err := headerToken(m)
	return token, found && err == nil
}

// headerToken looks for idem.Header only.
func headerToken(m Message) (token string, found bool, err error) {
	return tokenAmong(m.Header(idem.Header))
}

// tokenAmong returns the token in the values of idem.Header, which may be repeated with
// one value.
func tokenAmong(values []string) (token string, found bool, err error) {
	if len(values) == 0 {
		return "", false, nil
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return "", true, fmt.Errorf("header %s: %w: it is there %d times, with different values", idem.Header, idem.ErrInvalidToken, len(values))
		}
	}
	if err := idem.CheckToken(values[0]); err != nil {
		return "", true, fmt.Errorf("header %s: %w", idem.Header, err)
	}
	return values[0], true, nil
}

// token finds a message's token: the function of TokenFrom, the header, a
// CloudEvent's source and id, the broker's id where it is trusted, the broker's
// coordinates.
func (p *Policy) token(m Message) (string, error) {
	if p.tokenFrom != nil {
		token, err := Extract("TokenFrom", func() (string, error) { return p.tokenFrom(m) })
		if err != nil {
			return "", err
		}
		if token != "" {
			return token, idem.CheckToken(token)
		}
	}
	if token, found, err := headerToken(m); found {
		return token, err
	}
	if token := cloudEventToken(m); token != "" {
		return token, nil
	}
	if p.trustID && m.ID() != "" {
		return idem.TokenFor("id", m.ID()), nil
	}
	if c := m.Coordinates(); len(c) > 0 {
		return idem.TokenFor(append([]string{"at"}, c...)...), nil
	}
	return "", errNoToken
}

// Extract is for adapters: it calls find, a function that the user gave to option and
// that reads something of a message before there is a claim. Its panic is the message's
// fault, not the process's: each new process would meet the message again, and no attempt
// would be counted. It comes back as an error, which names the option like any other of
// find's; see Invalid.
func Extract(option string, find func() (string, error)) (s string, err error) {
	defer func() {
		if r := recover(); r != nil {
			s, err = "", fmt.Errorf("%s: the function panicked: %v", option, r)
		}
	}()
	if s, err = find(); err != nil {
		return "", fmt.Errorf("%s: %w", option, err)
	}
	return s, nil
}

// redrive returns the number in idem.RedriveHeader, zero where it is missing. A number
// that cannot be used is an error: read as zero, it would make a message that was moved
// back a stray redelivery, which is dropped.
func redrive(m Message) (int, error) {
	values := m.Header(idem.RedriveHeader)
	if len(values) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	if len(values) > 1 || err != nil || n < 0 || n > store.MaxRedrive || n > math.MaxInt-1 {
		return 0, fmt.Errorf("header %s: %.40q is no number from 0 to 2^53", idem.RedriveHeader, values)
	}
	return int(n), nil
}

// SameHeader is for adapters: it reports whether two header names are equal but for the
// case of ASCII letters. (Unicode's folding alone would match K with the Kelvin sign too.)
func SameHeader(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }
