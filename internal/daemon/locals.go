package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"fwd/forward"
)

// The local ends of a forward. A service may be there for TCP, for UDP, or for both under one name; the forward then
// listens for both at one address. What a service is its machine says; while that is offline, what it was when last
// met counts, and TCP if it never was. The first contact corrects it.

// A localEnd is one of them, as status and disconnect know it.
type localEnd struct {
	local string // with "/udp" behind it for datagrams; empty: standard input and output
	udp   bool
	tally *tally
}

// localEnds are the forward's, under Daemon.mu.
func (f *forwarding) localEnds() []localEnd {
	var list []localEnd
	if f.local != "" || f.localUDP == "" {
		list = append(list, localEnd{f.local, false, &f.tcp})
	}
	if f.localUDP != "" {
		list = append(list, localEnd{f.localUDP, true, &f.udp})
	}
	return list
}

func (d *Daemon) localEndsOf(f *forwarding) []localEnd {
	d.mu.Lock()
	defer d.mu.Unlock()
	return f.localEnds()
}

// connecting is a forward's local ends while they serve.
type connecting struct {
	d       *Daemon
	ctx     context.Context
	f       *forwarding
	local   forward.Local // as it was asked for
	emit    func(Event)
	serving sync.WaitGroup

	mu       sync.Mutex
	address  string // where the first end listens
	port     int    // the target's
	tcp, udp func() // end that end; nil: it does not serve
	noted    string // what was told beside
	over     bool   // nothing is started any more
}

// start runs f in a goroutine that wait waits for.
func (c *connecting) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.serving.Go(f)
	}
	return !c.over
}

func (c *connecting) wait() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.serving.Wait()
}

// connectLocal listens for what the service is, and carries what comes until ctx ends.
func (d *Daemon) connectLocal(ctx context.Context, f *forwarding, local forward.Local, req ConnectRequest, emit func(Event)) error {
	c := &connecting{d: d, ctx: ctx, f: f, local: local, emit: emit}
	o := d.askOffer(ctx, f)
	if o.known && o.none() { // then nothing should listen here, if that is still so
		var err error
		var refused *Failure
		if o, err = c.ask(ctx); errors.As(err, &refused) {
			return refused
		}
	}
	if !o.known || o.none() {
		o = d.kindsRemembered(f.word)
	}
	c.port = o.port
	listeners, conns, err := c.listen(o)
	if err != nil {
		return err
	}
	defer c.wait() // ends with ctx, which whoever returns below has ended
	if len(listeners) > 0 {
		c.serveTCP(listeners)
	}
	if len(conns) > 0 {
		c.serveUDP(conns)
	}
	c.start(func() { d.tellPaths(ctx, f, emit) })
	if err := d.firstContact(ctx, f, req.Timeout, emit, c.check); err != nil {
		f.end(err)
		return err
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// ask asks the peer for the service, or the one that is in its place by now.
func (c *connecting) ask(ctx context.Context) (offer, error) {
	to := c.f.peer()
	o, err := c.d.checkService(ctx, c.f, c.local)
	if refused := new(Failure); errors.As(err, &refused) && c.d.nowElsewhere(ctx, c.f, to) {
		return c.d.checkService(ctx, c.f, c.local)
	}
	return o, err
}

// check asks for the service, and makes the ends those that it has.
func (c *connecting) check(ctx context.Context) error {
	o, err := c.ask(ctx)
	if err != nil {
		return err
	}
	switch asked := c.local.Ports(); {
	case asked > o.ports:
		return fail(ExitUsage, "ports", fmt.Sprintf("fwd connect %s %s", c.f.word, rangeName(c.local.At(0).String(), o.ports)),
			"%s has %d port(s), and %d are wanted here", c.f.word, o.ports, asked)
	case asked < o.ports:
		last := o.port + o.ports - 1
		c.note("%s has the ports %d-%d, the first %d of which appear here; for all: fwd connect %s %d-%d", c.f.word, o.port, last, asked, c.f.word, o.port, last)
	}
	c.d.rememberKinds(c.f.word, o)
	c.adapt(o)
	return nil
}

// wants are the kinds to listen for, of those the service has.
func (c *connecting) wants(o offer) (tcp, udp bool) {
	switch {
	case c.local.UDP():
		return false, true
	case c.local.Network() == "unix":
		return true, false
	}
	return o.tcp, o.udp
}

// adapt opens what is missing and ends what leads nowhere.
func (c *connecting) adapt(o offer) {
	tcp, udp := c.wants(o)
	c.mu.Lock()
	address, hasTCP, hasUDP := c.address, c.tcp, c.udp
	c.port = o.port
	c.mu.Unlock()
	at, err := forward.ParseLocal(address)
	if err != nil || c.local.Network() == "unix" {
		return
	}
	if udp && hasUDP == nil {
		if conns, err := listenUDP(at); err != nil {
			c.note("no datagrams here: %v", err)
		} else {
			c.serveUDP(conns)
		}
	}
	if tcp && hasTCP == nil {
		if ls, err := listenTCP(at); err != nil {
			c.note("no connections here: %v", err)
		} else {
			c.serveTCP(ls)
		}
	}
	if !tcp && udp && hasTCP != nil {
		hasTCP()
	}
	if !udp && tcp && hasUDP != nil {
		hasUDP()
	}
}

// note tells something beside, once.
func (c *connecting) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.mu.Lock()
	again := c.noted == text
	c.noted = text
	c.mu.Unlock()
	if !again {
		c.emit(Event{Event: "progress", Service: c.f.word, Message: text})
	}
}

// serveTCP takes connections, and serveUDP datagrams, until the forward ends or it is not wanted any more.
func (c *connecting) serveTCP(ls []net.Listener) {
	told := c.d.tellSessions(c.f, c.emit)
	log := c.d.log.With("service", c.f.word, "peer", c.d.nameOf(c.f.peer()))
	if !c.serve(rangeName(localName(ls[0]), len(ls)), false, func(ctx context.Context) error {
		return serveEach(ctx, ls, func(ctx context.Context, i int, l net.Listener) error {
			entry := &forward.Entry{
				Listener:  l,
				Dial:      func(ctx context.Context) (forward.Conn, error) { return c.d.dialSession(ctx, c.f, i) },
				Room:      c.d.room.of(l.Addr()),
				OnSession: told,
				Log:       log,
			}
			return entry.Serve(ctx)
		})
	}) {
		closeAll(ls)
	}
}

func (c *connecting) serveUDP(conns []*net.UDPConn) {
	if !c.serve(rangeName(conns[0].LocalAddr().String(), len(conns))+udpSuffix, true, func(ctx context.Context) error {
		return serveEach(ctx, conns, func(ctx context.Context, i int, conn *net.UDPConn) error {
			return c.d.serveUDP(ctx, c.f, i, &forward.UDPEntry{Conn: conn}, c.emit)
		})
	}) {
		closeAll(conns)
	}
}

// serve runs one end and tells of it; false: the forward is over.
func (c *connecting) serve(local string, udp bool, run func(context.Context) error) bool {
	ctx, stop := context.WithCancel(c.ctx)
	port := c.begins(local, udp, stop)
	c.emit(Event{Event: "listening", Service: c.f.word, Machine: c.d.nameOf(c.f.peer()), Peer: c.f.peer().String(), Local: local, Port: port})
	started := c.start(func() {
		defer stop()
		if err := run(ctx); err != nil && ctx.Err() == nil {
			c.f.end(err)
		}
		if c.ctx.Err() == nil { // else the forward goes as a whole
			c.ends(udp)
		}
	})
	if !started {
		stop()
	}
	return started
}

// begins notes that an end serves, and what stops it; port is the target's.
func (c *connecting) begins(local string, udp bool, stop func()) (port int) {
	c.d.tellLocal(c.f, local, udp)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.address == "" {
		c.address = withoutUDP(local)
	}
	c.setStop(udp, stop)
	return c.port
}

// ends notes that it serves no more.
func (c *connecting) ends(udp bool) {
	c.d.tellLocal(c.f, "", udp)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setStop(udp, nil)
}

// setStop is under c.mu.
func (c *connecting) setStop(udp bool, stop func()) {
	if udp {
		c.udp = stop
	} else {
		c.tcp = stop
	}
}

// tellLocal has status know where an end of f listens; empty: nowhere.
func (d *Daemon) tellLocal(f *forwarding, local string, udp bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if udp {
		f.localUDP = local
	} else {
		f.local = local
	}
}

// listen opens the local ends. Without an address asked for it is the one of last time, else the target's own port if it
// is free, else any free port of loopback.
func (c *connecting) listen(o offer) ([]net.Listener, []*net.UDPConn, error) {
	tcp, udp := c.wants(o)
	if !c.local.Auto() {
		return c.listenAt(c.local, tcp, udp, true)
	}
	d, f := c.d, c.f
	var remembered string
	d.state.get(func(s stateFile) { remembered = s.Locals[f.word] })
	candidates := []string{remembered}
	if o.port >= 1024 && remembered == "" {
		candidates = append(candidates, net.JoinHostPort("127.0.0.1", strconv.Itoa(o.port)))
	}
	for range freePortTries {
		candidates = append(candidates, "127.0.0.1:0")
	}
	for i, address := range candidates {
		at, err := forward.ParseLocal(address)
		if err != nil || at.Auto() {
			continue
		}
		ls, conns, err := c.listenAt(at, tcp, udp, i == len(candidates)-1)
		if err != nil {
			continue
		}
		got := ""
		if len(ls) > 0 {
			got = ls[0].Addr().String()
		} else {
			got = conns[0].LocalAddr().String()
		}
		if got != remembered {
			if err := d.state.change(func(s *stateFile) { s.Locals[f.word] = got }); err != nil {
				d.log.Warn("remember where a service is connected", "service", f.word, "err", err)
				c.note("where it listens is not remembered: %v", err)
			}
		}
		return ls, conns, nil
	}
	return nil, nil, fail(ExitLocalPort, "port-in-use", "", "no local port is free")
}

// freePortTries is how many free TCP ports are drawn to find one that is free for UDP too.
const freePortTries = 5

// listenAt opens one address for TCP, UDP or both. half: TCP alone will do where another program has the UDP port.
func (c *connecting) listenAt(at forward.Local, tcp, udp, half bool) (ls []net.Listener, conns []*net.UDPConn, err error) {
	if tcp {
		if ls, err = listenTCP(at); err != nil {
			return nil, nil, c.d.listenFailure(err)
		}
		if at.Port() == 0 {
			at = forward.LocalOf(ls[0]) // a free port that the system chose is the one for both
		}
	}
	if !udp {
		return ls, nil, nil
	}
	conns, err = listenUDP(at)
	switch {
	case err == nil:
		return ls, conns, nil
	case len(ls) > 0 && half:
		c.note("no datagrams here: %v", err)
		return ls, nil, nil
	}
	closeAll(ls)
	return nil, nil, c.d.listenFailure(err)
}

func (d *Daemon) listenFailure(err error) error {
	var busy *forward.ListenError
	if !errors.As(err, &busy) {
		return err
	}
	if word := d.holder(busy.Local); word != "" && errors.Is(err, syscall.EADDRINUSE) {
		return fail(ExitLocalPort, "local-port", "end that one: fwd disconnect "+disconnectWord(busy.Local), "local address %s is in use by fwd itself, for %s", busy.Local, word)
	}
	return fail(ExitLocalPort, "local-port", busy.Hint, "%v", busy)
}

// holder is what of our own stands in the way of a local address; empty: nothing.
func (d *Daemon) holder(at forward.Local) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.forwards {
		for _, e := range f.localEnds() {
			if collides(e.local, at) {
				return f.word
			}
		}
	}
	for s := range d.socks {
		if collides(s.local, at) {
			return "fwd socks"
		}
	}
	return ""
}

// disconnectWord is what disconnect takes for whatever listens there: the port, where it has one.
func disconnectWord(at forward.Local) string {
	if port := at.Port(); port != 0 {
		return strconv.Itoa(port)
	}
	return at.String()
}

// collides: does what listens at local, one port or a range, keep another from listening at the port at?
func collides(local string, at forward.Local) bool {
	have, err := forward.ParseLocal(local)
	if err != nil || have.Network() != at.Network() {
		return false
	}
	for i := range have.Ports() {
		one := have.At(i)
		if one == at || at.Port() != 0 && one.Port() == at.Port() && (everywhere(one) || everywhere(at)) {
			return true
		}
	}
	return false
}

// everywhere: is it an address of the whole machine?
func everywhere(at forward.Local) bool {
	addr, err := netip.ParseAddrPort(at.Address())
	return err == nil && addr.Addr().IsUnspecified()
}
