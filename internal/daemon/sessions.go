package daemon

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"fwd/forward/session"
)

// nudgeProtocol tells a peer that we wait for bytes of it in vain: an empty
// stream, by another path than the one that fell silent. Only the entry can
// attach anew, and after a long silence it looks every 15 s.
const nudgeProtocol = protocol.ID("/fwd/nudge/1")

// nudgeWithin bounds the search for another path; then the entry has looked itself.
const nudgeWithin = 15 * time.Second

// pathSilent is told by the exit's sessions.
func (d *Daemon) pathSilent(p peer.ID, silent session.Stream) {
	s, ok := silent.(network.Stream)
	if !ok {
		return
	}
	go func() { // ends in time, or with the node
		ctx, cancel := context.WithTimeout(context.Background(), nudgeWithin)
		defer cancel()
		nudge, err := d.node.Open(ctx, p, nudgeProtocol, s.Conn(), d.pathKind(p))
		if err == nil {
			_, err = nudge.Write(nil) // the protocol's name travels with it
			nudge.Close()
		}
		d.log.Debug("path silent", "peer", d.nameOf(p), "remote", s.Conn().RemoteMultiaddr(), "err", err)
	}()
}

func (d *Daemon) serveNudge(s network.Stream) {
	d.sessions.Probe(s.Conn().RemotePeer())
	s.Close()
}

// endSession resets one connection, told by the first characters of its ID.
func (d *Daemon) endSession(word string) error {
	var found []string
	for _, info := range d.sessions.Sessions() {
		if strings.HasPrefix(info.ID, strings.ToLower(word)) {
			found = append(found, info.ID)
		}
	}
	for _, info := range d.datagrams.Flows() {
		if strings.HasPrefix(info.ID, strings.ToLower(word)) {
			found = append(found, info.ID)
		}
	}
	ended := errors.New("ended by fwd disconnect")
	switch {
	case len(found) > 1:
		return usage("give more of the ID: fwd status --json", "%q begins the IDs of %d connections", word, len(found))
	case len(found) == 0 || !d.sessions.End(found[0], ended) && !d.datagrams.End(found[0], ended):
		return fail(ExitUnknownName, "unknown-name", "see what is: fwd status", "no connection has the ID %q", word)
	}
	return nil
}

// tellDetached says what a session without a path waits for.
func (d *Daemon) tellDetached(row *Session, info session.Info) {
	if info.State != "detached" {
		return
	}
	row.Since, row.HeldTill = &info.Since, &info.Until
	name := d.nameOf(info.Peer)
	_, reached := d.node.Path(info.Peer)
	switch {
	case info.Role == "exit" && reached:
		row.WaitsFor = name + " to attach again"
	case reached:
		row.WaitsFor = name + " to answer"
	case !d.anyRelay():
		row.WaitsFor = "a way to " + name + " (no relay is reached either)"
	default:
		row.WaitsFor = "a way to " + name
	}
}

// anyRelay: is one connected?
func (d *Daemon) anyRelay() bool {
	for _, r := range d.node.RelayStates() {
		if r.Connected {
			return true
		}
	}
	return false
}
