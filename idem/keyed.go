package idem

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// A signed token is the token, a dot, and 128 bits of an HMAC-SHA256 in the URL-safe
// base64 alphabet.
const (
	signatureMark = "."
	signatureLen  = 22
	minTokenKey   = 16
)

// WithTokenKeys makes the guard admit only tokens that were signed with one of these keys:
// whoever has none cannot spend a token, guess one, or use up one that is not handled yet
// to have its message dropped. A key has 16 bytes or more; 32 from crypto/rand are meant.
// Give them to whoever stamps and whoever handles, with the same prefix: a signature is
// for one prefix, and good for every group.
//
// Tokens are signed with current: by Token, Sign, Claim.Derive, and the Stamp of every
// adapter. All keys verify. To change the key, give it to everybody as an older one, then
// make it current, then leave the old one out when the broker can deliver nothing that was
// signed with it. The signature is no part of what the records know: a token signed anew
// is the same token.
//
// Begin, Do and Spend refuse other tokens with ErrUnsigned, and Check with false, all
// without a trip to the store. Consumers dead-letter such a message, or stop; one that has
// no token to sign, but a CloudEvent's id or coordinates, among them.
//
// The payload is not signed. Who can read a message can send its token again, with another
// payload, before it is handled: see Fingerprints in package consumers, and SECURITY.md.
func WithTokenKeys(current []byte, older ...[]byte) Option {
	return func(o *Options) {
		o.keys = nil
		for i, key := range append([][]byte{current}, older...) {
			if len(key) < minTokenKey {
				o.faults = append(o.faults, fmt.Errorf("WithTokenKeys: key %d of %d has %d bytes, at least %d are needed: make one of 32 with crypto/rand", i+1, 1+len(older), len(key), minTokenKey))
				continue
			}
			o.keys = append(o.keys, signWith(key))
		}
	}
}

// WithUnsignedTokens makes a guard WithTokenKeys admit tokens without a signature too: for
// the time in which keys are brought in. First every guard that handles gets keys and this
// option, then those that stamp get the keys, then the option goes. Until then anybody can
// still spend a token.
//
// The way back is the same in reverse: those that stamp give up the keys first, and those
// that handle keep keys and this option until the broker can deliver nothing signed any
// more. A guard without the key takes token and signature for another token: what was
// completed, and comes again, is handled again. So do guards with this option that lack an
// older key.
func WithUnsignedTokens() Option {
	return func(o *Options) { o.unsigned = true }
}

// A signer makes the signature of a token for a prefix. It is a function so that its key
// shows in no dump of what holds it.
type signer func(prefix, token string) string

func signWith(key []byte) signer {
	key = slices.Clone(key)
	return func(prefix, token string) string {
		mac := hmac.New(sha256.New, key)
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(prefix)))
		mac.Write([]byte("idem token"))
		mac.Write(n[:])
		mac.Write([]byte(prefix))
		mac.Write([]byte(token))
		return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
	}
}

// Sign returns the token as a guard with the same keys and prefix admits it: for tokens of
// TokenFor, and for whatever a caller has made sure of by other means. A token that is
// signed already is signed with the current key. Without WithTokenKeys a token is returned
// as it is. The error wraps ErrInvalidToken: a token to be signed has at most 232 bytes.
//
// Never sign a token that came from outside unseen: that makes anybody's token good.
func (g *Guard) Sign(token string) (string, error) {
	if err := g.core.err; err != nil {
		return "", err
	}
	if err := CheckToken(token); err != nil {
		return "", err
	}
	if len(g.core.opts.keys) == 0 {
		return token, nil
	}
	token = g.core.bare(token)
	if most := MaxTokenLen - len(signatureMark) - signatureLen; len(token) > most {
		return "", fmt.Errorf("idem: sign: %w: %d bytes, at most %d leave room for the signature (make it shorter with TokenFor): %.40q…", ErrInvalidToken, len(token), most, token)
	}
	return g.core.sign(token), nil
}

// Identity returns what records, events and errors call a token: under WithTokenKeys, the
// token without its signature. The error wraps ErrInvalidToken, or ErrUnsigned where Begin
// would refuse the token. It asks no store.
func (g *Guard) Identity(token string) (string, error) {
	if err := CheckToken(token); err != nil {
		return "", err
	}
	bare, admitted := g.core.admit(token)
	if admitted {
		return bare, nil
	}
	shown := token // but not what may be a signature, with a key that is missing here
	if i := len(token) - len(signatureMark) - signatureLen; i > 0 && token[i:i+1] == signatureMark {
		shown = token[:i]
	}
	return "", fmt.Errorf("idem: token %.40q: %w", shown, ErrUnsigned)
}

// sign puts the current key's signature on a token, where there are keys.
func (c *core) sign(token string) string {
	if len(c.opts.keys) == 0 {
		return token
	}
	return token + signatureMark + c.opts.keys[0](c.opts.prefix, token)
}

// split takes a signature off a token, if it is one of this guard's keys.
func (c *core) split(token string) (bare string, signed bool) {
	i := len(token) - len(signatureMark) - signatureLen
	if len(c.opts.keys) == 0 || i <= 0 || !strings.HasPrefix(token[i:], signatureMark) {
		return token, false
	}
	signature := []byte(token[i+len(signatureMark):])
	for _, sign := range c.opts.keys {
		if subtle.ConstantTimeCompare(signature, []byte(sign(c.opts.prefix, token[:i]))) == 1 {
			return token[:i], true
		}
	}
	return token, false
}

// admit returns a token's identity, and whether it may be spent.
func (c *core) admit(token string) (bare string, admitted bool) {
	bare, signed := c.split(token)
	return bare, signed || len(c.opts.keys) == 0 || c.opts.unsigned
}

// bare is for calls of those who may write the store anyway: they may name a token with its
// signature or, as events and errors show it, without.
func (c *core) bare(token string) string {
	bare, _ := c.split(token)
	return bare
}
