package consumers

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/idemq/idemq/idem"
)

// Headers of the CloudEvents binary mode: ce_ on Kafka, ce- on NATS,
// cloudEvents: or cloudEvents_ on AMQP.
var cloudEventPrefixes = []string{"ce-", "ce_", "cloudEvents:", "cloudEvents_"}

// The media type of one event in the structured mode. A batch has another: it has no
// single id.
const structuredEvent = "application/cloudevents+json"

// cloudEventToken is made of an event's source and id, the same in both modes. It is
// empty where the message is no event, or not one that can be read.
func cloudEventToken(m Message) string {
	for _, prefix := range cloudEventPrefixes {
		source, id := m.Header(prefix+"source"), m.Header(prefix+"id")
		if len(source) == 1 && len(id) == 1 && source[0] != "" && id[0] != "" {
			return idem.TokenFor(source[0], id[0])
		}
	}
	if t := m.Header("content-type"); len(t) == 1 {
		if mediaType, _, _ := strings.Cut(t[0], ";"); strings.EqualFold(strings.TrimSpace(mediaType), structuredEvent) {
			return structuredEventToken(m.Body())
		}
	}
	return ""
}

// structuredEventToken reads the whole of an event in JSON: one that breaks off, or
// that says twice what its source or id is, has no token.
func structuredEventToken(body []byte) string {
	in := json.NewDecoder(bytes.NewReader(body))
	if t, err := in.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	var source, id string
	for in.More() {
		name, err := in.Token()
		if err != nil {
			return ""
		}
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return ""
		}
		var into *string
		switch name {
		case "source":
			into = &source
		case "id":
			into = &id
		default:
			continue
		}
		if *into != "" || json.Unmarshal(value, into) != nil || *into == "" {
			return ""
		}
		// What is no Unicode is replaced by this, and events that differ in it only
		// would be taken for one.
		if strings.ContainsRune(*into, '\uFFFD') {
			return ""
		}
	}
	if _, err := in.Token(); err != nil || source == "" || id == "" {
		return ""
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return ""
	}
	return idem.TokenFor(source, id)
}
