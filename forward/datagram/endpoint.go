package datagram

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// helloWithin is how long a peer that opened a stream may take to say hello.
const helloWithin = 5 * time.Second

// An Endpoint is this machine's ends of all flows.
type Endpoint struct {
	cfg     Config
	log     *slog.Logger
	boot    uint64
	offers  chan *Incoming
	exits   atomic.Int64  // flows that lead to targets here
	numbers atomic.Uint64 // of the last flow dialled
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   tasks
	totals  totals

	mu        sync.Mutex
	links     map[peer.ID]*half // we use theirs
	users     map[peer.ID]*half // they use ours
	receivers map[Packets]*receiver
}

// New makes an endpoint; nothing happens before Serve but what Dial asks for.
func New(cfg Config) *Endpoint {
	e := &Endpoint{
		cfg: cfg, log: cfg.Log, boot: rand.Uint64(), offers: make(chan *Incoming, maxOffers),
		links: make(map[peer.ID]*half), users: make(map[peer.ID]*half), receivers: make(map[Packets]*receiver),
		totals: totals{by: make(map[trafficKey]*carried)},
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// Serve ends idle flows until ctx ends, then ends all of them, and returns nil when everything below has ended.
func (e *Endpoint) Serve(ctx context.Context) error {
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, h := range e.halves() {
				h.sweep(now)
			}
		case <-ctx.Done():
			e.cancel()
			e.tasks.close()
			for _, h := range e.halves() {
				h.endAll(ErrClosed)
			}
			e.tasks.wait()
			return nil
		}
	}
}

func (e *Endpoint) halves() []*half {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*half, 0, len(e.links)+len(e.users))
	for _, h := range e.links {
		list = append(list, h)
	}
	for _, h := range e.users {
		list = append(list, h)
	}
	return list
}

func (e *Endpoint) packetsOf(s Stream) Packets {
	if e.cfg.Packets == nil {
		return nil
	}
	return e.cfg.Packets(s)
}

// Hold keeps a carrier to p ready until release is called, so that the first datagram need not wait for one.
func (e *Endpoint) Hold(p peer.ID) (release func()) {
	_, release = e.link(p)
	return release
}

// Dial opens a flow to a service of p. The peer learns of it by the first datagram, and a refusal comes to sink.Ended.
func (e *Endpoint) Dial(p peer.ID, service string, sink Sink) (*Flow, error) {
	if !validService(service) {
		return nil, fmt.Errorf("datagram: %q is no service's name", service)
	}
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	h, release := e.link(p)
	defer release()
	f := newFlow(h, e.numbers.Add(1), service, sink)
	h.add(f)
	return f, nil
}

// link finds or makes the half by which we use p's services, and holds it.
func (e *Endpoint) link(p peer.ID) (h *half, release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h = e.links[p]; h == nil {
		h = newHalf(e, p, roleEntry, e.boot)
		ctx, stop := context.WithCancel(e.ctx)
		h.stop = stop
		e.links[p] = h
		e.tasks.start(func() { h.keep(ctx) }) // ends with stop, which tidy calls
	}
	return h, e.holdLocked(h)
}

// holdLocked keeps h from tidy until release is called.
func (e *Endpoint) holdLocked(h *half) (release func()) {
	h.mu.Lock()
	h.holds++
	h.mu.Unlock()
	return sync.OnceFunc(func() {
		h.mu.Lock()
		h.holds--
		h.mu.Unlock()
		e.tidy(h)
	})
}

// tidy forgets a half that nothing needs any more.
func (e *Endpoint) tidy(h *half) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case len(h.flows) > 0 || h.holds > 0:
	case h.role == roleEntry && e.links[h.peer] == h:
		delete(e.links, h.peer)
		h.stop()
	case h.role == roleExit && e.users[h.peer] == h:
		delete(e.users, h.peer)
	}
}

// Handle takes a stream that p opened, and returns when it has ended.
func (e *Endpoint) Handle(p peer.ID, s Stream) {
	e.tasks.do(func() { e.serve(p, s) })
	s.Reset()
}

func (e *Endpoint) serve(p peer.ID, s Stream) {
	s.SetDeadline(time.Now().Add(helloWithin))
	hi, err := readHello(s)
	if err != nil {
		e.log.Debug("no hello", "peer", p.String(), "err", err)
		return
	}
	if err := e.cfg.Authorize(p, ""); err != nil {
		e.log.Warn("denied", "peer", p.String(), "reason", err)
		s.Write([]byte{statusDenied, 0})
		s.Close()
		io.Copy(io.Discard, io.LimitReader(s, batch)) // a reset would overtake the answer; the deadline holds
		return
	}
	s.SetDeadline(time.Time{})
	h, release := e.user(p, hi.boot)
	defer release()
	packets := e.packetsOf(s)
	c := newCarrier(h, s, packets, []byte{statusOK, flagsOf(packets != nil)})
	c.reads.Store(hi.packets)
	h.use(c)
	err = c.run(c.readFrames)
	e.log.Debug("carrier ended", "peer", p.String(), "err", err)
}

// user finds or makes the half by which p uses our services, and holds it. A new boot of p ends what its last one had.
func (e *Endpoint) user(p peer.ID, boot uint64) (h *half, release func()) {
	e.mu.Lock()
	old := e.users[p]
	h = old
	if h == nil || h.boot != boot {
		h = newHalf(e, p, roleExit, boot)
		e.users[p] = h
	}
	release = e.holdLocked(h)
	e.mu.Unlock()
	if old != nil && old != h {
		old.replaced()
	}
	return h, release
}

// Accept gives the next flow that a peer opened. It fails when ctx or the endpoint has ended.
func (e *Endpoint) Accept(ctx context.Context) (*Incoming, error) {
	select {
	case in := <-e.offers:
		return in, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.ctx.Done():
		return nil, ErrClosed
	}
}

// Renew says that there may be a better path to p.
func (e *Endpoint) Renew(p peer.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h := e.links[p]; h != nil {
		signal(h.renew)
	}
}

// Cut ends the flows that match; service "" stands for all that we have with p in that role.
func (e *Endpoint) Cut(match func(p peer.ID, service, role string) bool, why error) {
	for _, h := range e.halves() {
		code := Ended
		if h.role == roleExit {
			code = Denied
		}
		for _, f := range h.all() {
			if match(h.peer, f.service, h.role) {
				h.close(f.number, code)
				f.end(why)
			}
		}
		if match(h.peer, "", h.role) {
			h.endAll(why)
		}
	}
}

// End ends one flow; false: there is none of that ID.
func (e *Endpoint) End(id string, why error) bool {
	for _, h := range e.halves() {
		for _, f := range h.all() {
			if f.id() == id {
				h.close(f.number, Ended)
				f.end(why)
				return true
			}
		}
	}
	return false
}

// Flows are those that live, in no order.
func (e *Endpoint) Flows() []Info {
	var list []Info
	for _, h := range e.halves() {
		for _, f := range h.all() {
			list = append(list, f.Info())
		}
	}
	return list
}

// tasks are the goroutines of an endpoint.
type tasks struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// start runs f in a goroutine, unless the endpoint is ending.
func (t *tasks) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.wg.Go(f)
	}
	return !t.closed
}

// do runs f here.
func (t *tasks) do(f func()) {
	done := make(chan struct{})
	if t.start(func() { defer close(done); f() }) {
		<-done
	}
}

func (t *tasks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

func (t *tasks) wait() { t.wg.Wait() }
