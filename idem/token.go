package idem

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
)

// Header is the message header that carries the token: the name that the IETF
// draft "The Idempotency-Key HTTP Header Field" gives it.
const Header = "Idempotency-Key"

// RedriveHeader is the header of a dead-letter copy that tells a message moved
// back on purpose from a stray redelivery of the original. It holds a decimal
// number.
const RedriveHeader = "Idempotency-Redrive"

// MaxTokenLen is the longest token, in bytes.
const MaxTokenLen = 255

// NewToken makes a token: a UUID of version 7 (RFC 9562). It touches no store.
func NewToken() string {
	return uuid.Must(uuid.NewV7()).String() // fails only where crypto/rand does, which since Go 1.24 ends the process
}

// TokenFor makes the token of a business key: the same for the same parts, in
// the same order, each time and everywhere. Different parts give different tokens:
// ("ab", "c") is not ("a", "bc"). It is 32 characters of the URL-safe base64
// alphabet, 192 bits of a SHA-256.
//
// Parts that are all empty, or no parts, name nothing: the result is empty, which
// every other call refuses.
func TokenFor(parts ...string) string {
	named := false
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		named = named || p != ""
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	if !named {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:24])
}

// CheckToken returns an error that wraps ErrInvalidToken unless token has 1 to
// 255 bytes. Which bytes does not matter.
func CheckToken(token string) error {
	switch {
	case validToken(token):
		return nil
	case token == "":
		return fmt.Errorf("idem: %w: it is empty", ErrInvalidToken)
	default:
		return fmt.Errorf("idem: %w: %d bytes, at most %d are allowed (make it shorter with TokenFor): %.40q…", ErrInvalidToken, len(token), MaxTokenLen, token)
	}
}

func validToken(token string) bool { return token != "" && len(token) <= MaxTokenLen }

// fingerprint is of a payload: 128 bits of its SHA-256.
func fingerprint(payload []byte) string {
	sum := sha256.Sum256(payload)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}
