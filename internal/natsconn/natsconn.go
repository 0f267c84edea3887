// Package natsconn is what the NATS consumer and the NATS store both want of a connection.
package natsconn

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// ReconnectsForEver is the cure where GivesUp has anything to say.
const ReconnectsForEver = "Connect with nats.MaxReconnects(-1)."

// GivesUp says how the client gives its servers up; nothing where it never does.
func GivesUp(o *nats.Options) string {
	switch {
	case !o.AllowReconnect:
		return "The NATS client does not reconnect."
	case o.MaxReconnect < 0:
		return ""
	}
	return fmt.Sprintf("The NATS client gives a server up after %d attempts to reconnect, and closes when none is left.", o.MaxReconnect)
}
