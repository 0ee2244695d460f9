package node

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	ma "github.com/multiformats/go-multiaddr"
)

// What was tried to reach a peer, for people: the libraries say it in many lines and words of their own, which are for
// the log.

// A Tried is one way by which a peer was not reached.
type Tried struct {
	Addr  ma.Multiaddr // nil: by a relay
	Relay peer.ID
	By    string // UDP, TCP, WebSocket
	Why   string // in a few words: "refused"
}

// TriedIn finds the ways in an error of Connect, ConnectAt or ConnectStranger. What others made needless is left out.
func TriedIn(err error) (list []Tried) {
	switch e := err.(type) {
	case *swarm.TransportError:
		why, relay := whyOf(e.Cause), relayOf(e.Address)
		switch {
		case why == "":
			return nil
		case relay != "":
			return []Tried{{Relay: relay, Why: why}}
		}
		by := map[string]string{"quic-v1": "UDP", "tcp": "TCP", "ws": "WebSocket", "wss": "WebSocket"}[transportOf(e.Address)]
		return []Tried{{Addr: e.Address, By: by, Why: why}}
	case *RelayRefusal:
		return []Tried{{Relay: e.Relay, Why: e.Why}}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			list = append(list, TriedIn(inner)...)
		}
	case interface{ Unwrap() error }:
		list = TriedIn(e.Unwrap())
	}
	return list
}

// A proxyError is what came of the way through an HTTP proxy.
type proxyError struct {
	proxy string
	err   error
}

func (e *proxyError) Error() string { return "through the proxy " + e.proxy + ": " + e.err.Error() }
func (e *proxyError) Unwrap() error { return e.err }

// A relayUnreached says that it was the relay itself that was not reached.
type relayUnreached struct{ err error }

func (e *relayUnreached) Error() string { return "the relay: " + e.err.Error() }
func (e *relayUnreached) Unwrap() error { return e.err }

// whyOf is a failed dial in a few words; empty: it was called off.
func whyOf(err error) string {
	var proxy *proxyError
	var relay *relayUnreached
	var dns *net.DNSError
	var timeout net.Error
	switch text := err.Error(); {
	case errors.As(err, &proxy):
		if why := whyOf(proxy.err); why != "" && why != unclear {
			return "through the proxy " + proxy.proxy + ": " + why
		}
		return proxy.Error() // the proxy's own words
	case errors.As(err, &relay):
		return "not reached"
	case strings.Contains(text, pb.Status_NO_RESERVATION.String()):
		return "not connected to it"
	case strings.Contains(text, pb.Status_CONNECTION_FAILED.String()):
		return "not reached from it"
	case errors.As(err, new(sec.ErrPeerIDMismatch)):
		return "another machine answers there"
	case strings.Contains(text, "refused"): // each system has another number for it
		return "refused"
	case strings.Contains(text, "unreachable"), strings.Contains(text, "no route"):
		return "no route"
	case errors.As(err, &dns):
		return "name not found"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	case errors.Is(err, context.Canceled):
		return ""
	}
	return unclear
}

// unclear stands for what the log alone can tell.
const unclear = "failed"
