package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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

// `fwd socks`: one local port for all services. A program that speaks SOCKS 5 names
// the service, and is taken there as by a forward made for it. Nothing but the
// network's services is reached by it, so it is no way to the internet for anybody.
//
// What a name means:
//
//	SERVICE.fwd, SERVICE.MACHINE.fwd   the service, at whatever port the program says:
//	                                   a browser's http://web.fwd is the service at 8080;
//	                                   of a range of ports that port, or else the first
//	MACHINE.fwd:PORT                   the machine's service whose target has that port
//	NAME.fwd:PORT, NAME being both     the service of that port on the machine, where it
//	                                   exposes both, else the service NAME

// DefaultSocks is the port that programs suggest for SOCKS (IANA: socks).
const DefaultSocks = "1080"

// socksNames is what a SOCKS entry leads to, in the place of a forward's service.
const socksNames = "*.fwd"

// socksLinger is how long a way is kept for the next connection after the last one: a
// browser comes back within the minute, and a way kept costs a probe now and then.
const socksLinger = time.Minute

// local is where the request wants to listen.
func (r SocksRequest) local() (forward.Local, error) {
	local, err := forward.ParseLocal(cmp.Or(r.Local, DefaultSocks))
	if err == nil && (local.Stdio() || local.UDP() || local.Ports() > 1) {
		return local, fmt.Errorf("local address %q: SOCKS is for connections to one port or a unix socket", r.Local)
	}
	return local, err
}

// A socks is one such entry, as long as the wish for it lasts.
type socks struct {
	d        *Daemon
	local    string
	from     string // command, kept, config
	wish     string // its key
	sessions atomic.Int64
	end      context.CancelCauseFunc
	ended    chan struct{} // closed when it listens no more
	emit     func(Event)

	mu   sync.Mutex
	told time.Time // when a refusal was told last
}

// serveSocks carries out `fwd socks` and lasts until ctx ends.
func (d *Daemon) serveSocks(ctx context.Context, req SocksRequest, from string, emit func(Event)) error {
	local, err := req.local()
	if err != nil {
		return usage("local is a port (1080), addr:port, or unix:/path", "%v", err)
	}
	if _, err := d.belongs(); err != nil {
		return err
	}
	listener, err := local.Listen()
	if err != nil {
		return d.listenFailure(err)
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &socks{d: d, local: localName(listener), from: from, wish: socksWish(req, from).key, end: end, ended: make(chan struct{}), emit: emit}
	d.mu.Lock()
	d.socks[s] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.socks, s)
		close(s.ended)
	}()
	d.log.Info("socks", "local", s.local)
	emit(Event{Event: "listening", Service: socksNames, Local: s.local})
	entry := &forward.SOCKSEntry{Listener: listener, Room: d.room.of(listener.Addr()), Dial: s.dial, OnSession: s.opened, Log: d.log}
	if err := entry.Serve(ctx); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// dial opens a session to what the program named.
func (s *socks) dial(ctx context.Context, host string, port int) (forward.Conn, error) {
	service, p, err := s.find(ctx, host, port)
	if err != nil {
		s.tell("%s:%d: %s", clean(host, maxHost), port, failureOf(err).What)
		return nil, err
	}
	release := s.d.node.Hold(p, node.Auto)
	conn, err := s.open(ctx, p, service, port)
	if err != nil {
		release()
		return nil, err
	}
	return &socksSession{Conn: conn, peer: p, release: release}, nil
}

// maxHost bounds a host that a program asks for where it is told, as names are (RFC 1035).
const maxHost = 255

func (s *socks) open(ctx context.Context, p peer.ID, service string, port int) (*session.Conn, error) {
	place, err := s.d.placeOf(ctx, p, service, port)
	if err != nil {
		s.tell("%s", failureOf(err).What)
		return nil, err
	}
	return s.d.sessions.Dial(ctx, p, portWord(service, place))
}

// find is what host and port mean, by the rules at the top of this file.
func (s *socks) find(ctx context.Context, host string, port int) (service string, p peer.ID, err error) {
	name, ours := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".fwd")
	if !ours {
		return "", "", notCarried(host)
	}
	roster, err := s.d.belongs()
	if err != nil {
		return "", "", err
	}
	machine, isMachine := roster.ByName(name)
	named, owner, err := roster.Resolve(name)
	isService := err == nil
	isLong := isService && strings.Contains(name, ".")
	isElsewhere := isService && owner != machine.Peer
	switch {
	case isLong:
		return s.findLong(ctx, name, named, owner)
	case !isMachine, isElsewhere:
		return s.d.resolve(ctx, name)
	}
	// The machine's own word says what its ports are.
	offered, err := s.d.askServices(ctx, machine.Peer)
	for _, o := range offered {
		if !o.UDP && portsOf(o).has(port) && (o.Name == named || service == "") {
			service = o.Name
		}
	}
	switch {
	case service == "" && isService:
		return s.d.resolve(ctx, name)
	case err != nil:
		return "", "", s.d.unreachable(machine.Name, err)
	case service == "":
		return "", "", fmt.Errorf("%w: %s exposes no port %d that this machine may use", forward.ErrNothingThere, machine.Name, port)
	}
	return s.d.resolve(ctx, service+"."+machine.Name)
}

// placeOf is the place of a port in the range that a service is. Only its machine knows the range, and it is asked
// where it has not told lately, or what it told does not have the port: another place is another program.
func (d *Daemon) placeOf(ctx context.Context, p peer.ID, service string, port int) (int, error) {
	d.mu.Lock()
	last := d.offered[p]
	d.mu.Unlock()
	r, ok := rangeOf(last.services, service)
	if !ok || time.Since(last.asked) > rangeLasts || !r.has(port) && r.first < r.last {
		services, err := d.awaitServices(ctx, p)
		if err != nil {
			return 0, d.unreachable(d.nameOf(p), err)
		}
		if r, ok = rangeOf(services, service); !ok {
			return 0, exposesNo(d.nameOf(p), service)
		}
	}
	switch {
	case r.has(port):
		return port - r.first, nil
	case r.first == r.last, port == 80, port == 443: // what an address without a port means
		return 0, nil
	}
	return 0, fmt.Errorf("%w: %s on %s has the ports %d to %d, and not %d", forward.ErrNothingThere, service, d.nameOf(p), r.first, r.last, port)
}

// rangeLasts is how long what a machine told of its services is right for sure: as long as a browser takes for a page
// of many connections.
const rangeLasts = 10 * time.Second

// A portRange is a service's ports for TCP, one at least.
type portRange struct{ first, last int }

func (r portRange) has(port int) bool { return r.first <= port && port <= r.last }

func portsOf(s identity.ServiceInfo) portRange {
	return portRange{int(s.Port), max(int(s.Port), int(s.Last))}
}

// rangeOf picks a service's ports out of what its machine exposes.
func rangeOf(services []identity.ServiceInfo, name string) (r portRange, ok bool) {
	for _, s := range services {
		if s.Name == name && !s.UDP {
			return portsOf(s), true
		}
	}
	return portRange{}, false
}

func exposesNo(machine, service string) error {
	return fmt.Errorf("%w: %s exposes no %q that this machine may use", forward.ErrNothingThere, machine, service)
}

// findLong is SERVICE.MACHINE. The first time the machine is asked whether it has the
// service, since each name that is used is remembered with its key, and a web page in a
// browser can make up names without end.
func (s *socks) findLong(ctx context.Context, name, service string, p peer.ID) (string, peer.ID, error) {
	if _, known := s.d.known.Pinned(name); known {
		return s.d.resolve(ctx, name)
	}
	machine := s.d.nameOf(p)
	offered, err := s.d.askServices(ctx, p)
	if err != nil {
		return "", "", s.d.unreachable(machine, err)
	}
	if _, ok := rangeOf(offered, service); !ok {
		return "", "", exposesNo(machine, service)
	}
	return s.d.resolve(ctx, name)
}

// notCarried is told for what is none of the network's names. An address is often a
// name that the program has looked up itself.
func notCarried(host string) error {
	what := "only names that end in .fwd are carried"
	if net.ParseIP(host) != nil {
		what += ", not addresses: let the proxy look names up (curl --socks5-hostname, socks5h://)"
	}
	return fmt.Errorf("%w: %s", forward.ErrNotAllowed, what)
}

// opened counts a session, and has its refusal told.
func (s *socks) opened(_ net.Conn, conn forward.Conn) func(int64, int64, error) {
	s.sessions.Add(1)
	peer := conn.(*socksSession).peer
	return func(_, _ int64, err error) {
		s.sessions.Add(-1)
		var refused *session.RefusedError
		if errors.As(err, &refused) {
			s.tell("%s", refusalWords(s.d.nameOf(peer), refused))
		}
	}
}

// tell has the person at the entry told why connections end at once: at most once a
// second, for a browser tries many at a time.
func (s *socks) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.told) < time.Second {
		return
	}
	s.told = time.Now()
	s.emit(Event{Event: "progress", Service: socksNames, Message: fmt.Sprintf(format, args...)})
}

// A socksSession lets go of its peer some time after its end. All else a session can, it can: Copy is to hear of a loss.
type socksSession struct {
	*session.Conn
	peer    peer.ID
	release func()
	once    sync.Once
}

func (c *socksSession) letGo() {
	c.once.Do(func() { time.AfterFunc(socksLinger, c.release) })
}

func (c *socksSession) Close() error {
	c.letGo()
	return c.Conn.Close()
}

func (c *socksSession) Reset() error {
	c.letGo()
	return c.Conn.Reset()
}
