package daemon

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"fwd/forward"
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

// sessionRow is a session as status and events tell it.
func (d *Daemon) sessionRow(info session.Info) Session {
	row := Session{ID: info.ID, Service: info.Service, Machine: d.nameOf(info.Peer), Peer: info.Peer.String(), Role: info.Role, State: info.State,
		Sent: info.Sent, Received: info.Received, Migrations: info.Migrations, Opened: info.Opened}
	if path, ok := d.node.PathBy(info.Peer, d.pathKind(info.Peer)); ok && info.State == "open" {
		row.Path = path.Kind
	}
	d.tellDetached(&row, info)
	return row
}

// tellSession tells of a session that has begun, and by what it returns that it has ended. Who listens may be slow, and
// the session waits for nobody.
func (d *Daemon) tellSession(s *session.Conn, service string, emit func(Event)) (closed func()) {
	tell := func(row Session) {
		emit(Event{Event: "session", Service: service, Peer: row.Peer, Session: &row})
	}
	begun, ended := d.sessionRow(s.Info()), make(chan Session, 1)
	go func() { // ends with the session
		tell(begun)
		tell(<-ended)
	}()
	return func() {
		row := d.sessionRow(s.Info())
		row.State, row.Path = "closed", ""
		ended <- row
	}
}

// exitSession tells who exposes a service of a session that has begun, if that was asked for.
func (d *Daemon) exitSession(service string, c forward.Conn) (ended func()) {
	name := whole(service)
	d.mu.Lock()
	svc := d.services[serviceKey(name, false)]
	d.mu.Unlock()
	s, ok := c.(*session.Conn)
	if !ok || svc == nil || svc.tell == nil {
		return nil
	}
	return d.tellSession(s, name, svc.tell)
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
