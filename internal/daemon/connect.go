package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward"
	"fwd/forward/session"
	"fwd/identity"
	"fwd/internal/node"
)

// A forwarding is one local listener and the service behind it, as long as the
// wish for it lasts.
type forwarding struct {
	word            string                  // as the person wrote it
	service         string                  // on its machine
	asked           string                  // the local address as it was asked for; empty: any free port
	far             atomic.Pointer[peer.ID] // see peer
	local, localUDP string                  // where it listens, as told; under Daemon.mu
	tcp, udp        tally                   // of what its two local ends carry
	kind            node.PathKind           // under Daemon.mu: changeForward
	from            string                  // command, kept, config
	wish            string                  // the wish's key
	tell            bool                    // of each session
	release         func()                  // of the hold on the peer; under Daemon.mu
	end             context.CancelCauseFunc
	ended           chan struct{} // closed when it listens no more
}

// peer is the machine that new connections go to.
func (f *forwarding) peer() peer.ID { return *f.far.Load() }

// connect carries out `fwd connect` and lasts until ctx ends.
func (d *Daemon) connect(ctx context.Context, req ConnectRequest, from string, emit func(Event), stream *wishStream) error {
	local, err := forward.ParseLocal(req.Local)
	if err != nil {
		return usage("local is a port (2222), addr:port, unix:/path, or -", "%v", err)
	}
	kind, err := node.ParsePathKind(req.Path)
	if err != nil {
		return usage("--path auto, direct or relay", "%v", err)
	}
	req.Name = strings.TrimSuffix(strings.ToLower(req.Name), ".fwd") // names are, as in DNS, the same in capitals
	emit(Event{Event: "progress", Message: "looking up " + req.Name})
	service, p, err := d.resolve(ctx, req.Name)
	if f := new(Failure); local.Stdio() && errors.As(err, &f) && f.Code == "unknown-name" && d.isMachine(req.Name) {
		// A machine's name on standard input and output is ssh's: its ssh is meant.
		req.Name = "ssh." + req.Name
		service, p, err = d.resolve(ctx, req.Name)
	}
	if err != nil {
		return err
	}
	if p == d.self {
		return d.servedHere(req.Name, service)
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	f := &forwarding{word: req.Name, service: service, kind: kind, from: from, wish: connectWish(req, from).key, tell: req.Tell, end: end, ended: make(chan struct{})}
	if local.Port() != 0 {
		f.asked = local.String()
	}
	f.far.Store(&p)
	// Held before the listener is: the way is being built while the person types.
	f.release = d.node.Hold(p, kind)
	defer func() {
		d.mu.Lock()
		release := f.release
		d.mu.Unlock()
		release()
	}()
	if err := d.addForward(f); err != nil {
		return err
	}
	defer d.removeForward(f)

	if local.Stdio() {
		return d.connectStdio(ctx, f, req, emit, stream)
	}
	return d.connectLocal(ctx, f, local, req, emit)
}

// tellSessions counts the forward's connections, has the person at it told why they end at once, and who asked for it of
// each one.
func (d *Daemon) tellSessions(f *forwarding, emit func(Event)) func(net.Conn, forward.Conn) func(int64, int64, error) {
	refused := d.refusalTeller(f, emit)
	return func(_ net.Conn, far forward.Conn) func(int64, int64, error) {
		s := far.(*session.Conn) // dialSession's
		ended, closed := f.tcp.session(s), func() {}
		if f.tell {
			closed = d.tellSession(s, f.word, emit)
		}
		return func(_, _ int64, err error) {
			ended()
			closed()
			refused(err)
		}
	}
}

// refusalTeller tells of refusals, of which the local program sees only a reset: at most once a second, for a browser
// tries many at a time.
func (d *Daemon) refusalTeller(f *forwarding, emit func(Event)) func(error) {
	var mu sync.Mutex
	var last time.Time
	return func(err error) {
		var refused *session.RefusedError
		if !errors.As(err, &refused) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		emit(Event{Event: "progress", Service: f.word, Message: refusalWords(d.nameOf(f.peer()), refused)})
	}
}

func refusalWords(machine string, refused *session.RefusedError) string {
	switch refused.Code {
	case session.Denied:
		return fmt.Sprintf("%s does not let this machine use %s, or does not expose it now", machine, refused.Service)
	case session.Refused:
		return fmt.Sprintf("%s: nothing answers at the target of %s", machine, refused.Service)
	case session.Timeout:
		return fmt.Sprintf("%s: the target of %s does not answer in time", machine, refused.Service)
	}
	return fmt.Sprintf("%s refused a connection to %s: %s", machine, refused.Service, refused.Code)
}

// dialSession opens one session, to the port of that place in a range. The name is pinned to its peer: should the
// roster give it to another meanwhile, the forward stays with the one it began
// with, but for a hand-over (follow).
func (d *Daemon) dialSession(ctx context.Context, f *forwarding, port int) (*session.Conn, error) {
	return d.sessions.Dial(ctx, f.peer(), portWord(f.service, port))
}

// connectStdio is `connect -`: one session over the control connection.
func (d *Daemon) connectStdio(ctx context.Context, f *forwarding, req ConnectRequest, emit func(Event), stream *wishStream) error {
	if stream == nil {
		return usage("run it on the machine itself", "connect - has no meaning from afar")
	}
	dialCtx, cancel := ctx, context.CancelFunc(func() {})
	if req.Timeout > 0 {
		dialCtx, cancel = context.WithTimeout(ctx, req.Timeout)
	}
	defer cancel()
	conn, err := d.dialSession(dialCtx, f, 0)
	var refused *session.RefusedError
	if errors.As(err, &refused) {
		return d.refusal(f, refused)
	} else if err != nil {
		return d.unreachable(d.nameOf(f.peer()), err)
	}
	defer f.tcp.session(conn)()
	local := stream.take()
	emit(Event{Event: "open", Service: f.word, Peer: f.peer().String()})
	stop := context.AfterFunc(ctx, func() {
		local.Close()
		forward.Reset(conn)
	})
	defer stop()
	client := &explained{framed: framed{Conn: local, r: stream.r}, gone: func() { f.end(errClientGone) }}
	_, _, err = forward.Copy(client, conn)
	if errors.As(err, &refused) {
		client.fail(d.refusal(f, refused))
	} else if err != nil {
		local.Close()
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("the connection to %s on %s broke: %w", f.service, d.nameOf(f.peer()), err)
	}
	return err
}

// An explained connection is not closed by a reset, only stopped: who reset it may tell
// why first, and closes it. And it tells of a client that goes: who has ended its own direction is read from no more, and
// a session that is silent, or waits for a path, would be held for nobody.
type explained struct {
	framed
	gone func()
}

func (e *explained) Read(p []byte) (int, error) {
	n, err := e.framed.Read(p)
	if err == io.EOF {
		go e.watch() // ends with the connection
	}
	return n, err
}

// watch waits until the client closes, which it may once it has our direction's end.
func (e *explained) watch() {
	if _, err := io.Copy(io.Discard, e.r); errors.Is(err, os.ErrDeadlineExceeded) {
		return // Reset
	}
	e.write.Lock()
	done := e.done
	e.write.Unlock()
	if !done {
		e.gone()
	}
}

func (e *explained) Reset() error { return e.SetDeadline(time.Unix(1, 0)) }

// refusal is why a session to f was refused, as an error.
func (d *Daemon) refusal(f *forwarding, refused *session.RefusedError) *Failure {
	machine := d.nameOf(f.peer())
	what := refusalWords(machine, refused)
	switch refused.Code {
	case session.Denied:
		return fail(ExitRefused, "refused", d.offerHint(f), "%s", what)
	case session.Refused, session.Timeout:
		return fail(ExitFailed, "target", "see that what is exposed runs on "+machine, "%s", what)
	}
	return fail(ExitFailed, "failed", "", "%s", what)
}

// offerHint is what would let this machine use f's service.
func (d *Daemon) offerHint(f *forwarding) string {
	if s := d.book.Current(); s != nil {
		if e, ok := s.Entry(d.self); ok && e.Caps&identity.Use == 0 {
			return fmt.Sprintf("this machine's role is %s, which uses no services: invite it as a member, a relay by fwd invite --relay --admin", e.Role())
		}
	}
	return fmt.Sprintf("on %s: fwd expose … --name %s, or fwd allow %s %s", d.nameOf(f.peer()), f.service, f.service, d.nameOf(d.self))
}

// resolve finds the service's machine on the roster and checks the pin. An
// unknown name is looked for in the newest roster first.
func (d *Daemon) resolve(ctx context.Context, word string) (string, peer.ID, error) {
	roster, err := d.belongs()
	if err != nil {
		return "", "", err
	}
	service, p, err := roster.Resolve(word)
	if err != nil {
		if newer := d.freshen(ctx, roster); newer != nil {
			roster = newer
			service, p, err = newer.Resolve(word)
		}
	}
	if err != nil {
		return "", "", unknownName(roster, word)
	}
	var changed *identity.IdentityChangedError
	if err := d.known.Pin(word, p, roster.Roster); errors.As(err, &changed) {
		if newerRoster(d.book.Current(), roster) { // by which the pin may have moved
			return d.resolve(ctx, word)
		}
		return "", "", fail(ExitIdentityChanged, "identity-changed",
			d.changeHint(word, changed.Was, p),
			"%s is now served by %s (%s), but was %s when first used here", word, d.nameOf(p), p, changed.Was)
	} else if err != nil {
		return "", "", fmt.Errorf("pin %s: %w", word, err)
	}
	return service, p, nil
}

// changeHint: the old machine can say so once for all, while it belongs; else each person here.
func (d *Daemon) changeHint(word string, was, now peer.ID) string {
	hint := "if that is as it should be (a new machine, a name handed on): fwd trust " + word
	if d.member(was) {
		hint += "; or on " + d.nameOf(was) + ", for everybody: fwd id hand-over " + d.nameOf(now)
	}
	return hint
}

// freshenWait bounds the wait for a newer roster before a name is called unknown.
const freshenWait = 3 * time.Second

// freshen gets a roster newer than the one that was looked at: the one that came
// meanwhile, or one that a relay or the owner has, whoever answers first. It is
// nil where there is none.
func (d *Daemon) freshen(ctx context.Context, looked *identity.Sealed) *identity.Sealed {
	ctx, cancel := context.WithTimeout(ctx, freshenWait)
	defer cancel()
	if now := d.book.Current(); newerRoster(now, looked) {
		return now
	}
	ask := map[peer.ID]bool{looked.Owner: true}
	for _, r := range looked.Relays {
		ask[r.Peer] = true
	}
	delete(ask, d.self)
	done := make(chan struct{}, len(ask))
	for p := range ask {
		go func() { // ends with ctx
			if d.node.Connect(ctx, p) == nil {
				d.exchange(ctx, p)
			}
			done <- struct{}{}
		}()
	}
	for range ask {
		<-done
		if now := d.book.Current(); newerRoster(now, looked) {
			return now
		}
	}
	return nil
}

func newerRoster(a, b *identity.Sealed) bool {
	return a != nil && (b == nil || a.Term > b.Term || a.Term == b.Term && a.Epoch > b.Epoch)
}

// servedHere: what is exposed here needs no forward.
func (d *Daemon) servedHere(word, service string) *Failure {
	d.mu.Lock()
	exposed := len(d.servicesLocked(service)) > 0
	d.mu.Unlock()
	if !exposed {
		return fail(ExitUnknownName, "unknown-name", "see what is exposed here: fwd status", "%s would be this very machine's, which does not expose it", word)
	}
	return usage("it is already here: fwd status shows its target", "%s is exposed by this very machine", word)
}

func unknownName(roster *identity.Sealed, word string) *Failure {
	if e, ok := roster.ByName(word); ok {
		hint := "see what it exposes: fwd ls"
		for _, name := range slices.Sorted(maps.Keys(roster.Services)) {
			if roster.Services[name] == e.Peer {
				hint += "; for instance fwd connect " + name
				break
			}
		}
		return fail(ExitUnknownName, "unknown-name", hint, "%q is a machine in the network %q, and no service", word, roster.Name)
	}
	return fail(ExitUnknownName, "unknown-name", "see what there is: fwd ls", "no service %q in the network %q", word, roster.Name)
}

// firstContact waits until the peer is reached, and asks what it exposes, so
// that a service that is not there or not for us is told at once and not only
// when the first connection fails. Without a time-out an offline peer is
// waited for while the listener accepts already.
func (d *Daemon) firstContact(ctx context.Context, f *forwarding, timeout time.Duration, emit func(Event), met func(context.Context) error) error {
	check := func(ctx context.Context) error {
		if err := d.node.Connect(ctx, f.peer()); err != nil {
			return err
		}
		return met(ctx)
	}
	if timeout > 0 {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		for {
			err := check(ctx)
			var refused *Failure
			if err == nil || errors.As(err, &refused) {
				return err
			}
			select {
			case <-ctx.Done():
				late := d.unreachable(d.nameOf(f.peer()), err)
				late.What = fmt.Sprintf("%s; it was tried for %s", late.What, plainDuration(timeout))
				return late
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	go func() { // ends with ctx
		ctx, cancel := context.WithTimeout(ctx, offlineAfter)
		defer cancel()
		err := check(ctx)
		var refused *Failure
		switch {
		case err == nil, errors.Is(context.Cause(ctx), errClientGone), errors.Is(context.Cause(ctx), errWishEnded):
		case errors.As(err, &refused):
			f.end(refused)
		default:
			d.log.Info("peer not reached yet", "peer", d.nameOf(f.peer()), "err", err)
			message := d.nameOf(f.peer()) + " is offline; waiting for it"
			if why := d.relayRefuses(err); why != "" {
				message = d.nameOf(f.peer()) + " is not reached: " + why
			}
			emit(Event{Event: "progress", Message: message})
		}
	}()
	return nil
}

// offlineAfter: a peer that no path reached in this time is told to be offline.
const offlineAfter = 10 * time.Second

func (d *Daemon) kindWanted(f *forwarding) node.PathKind {
	d.mu.Lock()
	defer d.mu.Unlock()
	return f.kind
}

// tellPaths emits each change of the way to f's peer until ctx ends.
func (d *Daemon) tellPaths(ctx context.Context, f *forwarding, emit func(Event)) {
	changes, stop := d.node.Watch()
	defer stop()
	// Only changes of the best path are told; the best of one kind is looked for.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	last, why, to, by := "", "", f.peer(), node.Auto
	tell := func() {
		if p := f.peer(); p != to {
			emit(Event{Event: "progress", Service: f.word, Message: fmt.Sprintf("%s has taken the place of %s: the old key says so", d.nameOf(p), d.nameOf(to))})
			to = p
		}
		by = d.pathKind(to)
		now, ok := d.node.PathBy(to, by)
		if !ok {
			if last != "" {
				emit(Event{Event: "path", Service: f.word, Peer: to.String()})
			}
			last = ""
			return
		}
		p := d.pathOf(now)
		// A relayed path is told at once, and again when it is known why it is one.
		if key := p.Kind + p.Transport + p.Remote; key != last || p.Reason != "" && p.Reason != why {
			last, why = key, p.Reason
			emit(Event{Event: "path", Service: f.word, Peer: to.String(), Path: p})
		}
	}
	tell()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-changes:
			if c.Peer == f.peer() {
				tell()
			}
		case <-look.C:
			if kind := d.pathKind(to); kind != node.Auto || kind != by || f.peer() != to {
				tell()
			}
		}
	}
}

// isMachine: is word a machine's name on the roster?
func (d *Daemon) isMachine(word string) bool {
	s := d.book.Current()
	if s == nil {
		return false
	}
	_, ok := s.ByName(strings.TrimSuffix(strings.ToLower(word), ".fwd"))
	return ok
}

// localName is a listener as a person writes it, with the port it really got.
func localName(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}
