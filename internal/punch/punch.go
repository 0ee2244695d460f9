// Package punch gets a direct path between two peers that so far have only a relayed one.
//
//	p := punch.New(punch.Config{Self: id, Report: report, Open: relayed, Dial: dial, Direct: direct})
//	outcome, err := p.Punch(ctx, peer)     // we start
//	p.Handle(peer, stream)                 // the peer starts
//
// What happens: both sides send their NAT report over the relayed connection; each computes the same
// plan from the two (MakePlan, a pure function); both send packets that die on the way, to open their
// own NATs; "go" is said, and both follow the plan's steps by the clock. Whatever connection comes out
// is the node's to take: it arrives by Config.Dial or at the listen port, and Config.Direct tells. Where
// that should have worked and did not, all of it is done once more, with sockets that no router remembers.
//
// Either side may start. If both do at once, the one with the lower peer ID coordinates and the other
// joins in.
//
// Punch moves no traffic, closes no connection, knows no sessions, and dials nothing but what the peer's
// report says, within limits.
package punch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// Protocol is spoken on a stream of the relayed connection.
const Protocol protocol.ID = "/fwd/punch/1"

const (
	// talkWithin is how long the exchange of reports may take.
	talkWithin = 5 * time.Second
	// openers is how many packets that die on the way open our NAT for one address: two may be lost.
	openers = 3
	// openerHops is how far they get: past our own NAT, and no further than its neighbour.
	openerHops = 2
	// tcpAgain is the pause before TCP is dialled again within a step: an early SYN may be refused by
	// the other router while the next one crosses the peer's.
	tcpAgain = 50 * time.Millisecond
)

// Stream is what the protocol needs of a libp2p stream.
type Stream interface {
	io.Reader
	io.Writer
	Close() error
	Reset() error
	SetDeadline(time.Time) error
}

// Config is what a Puncher is given to act with.
type Config struct {
	Self   peer.ID
	Report func(context.Context) Report                             // of our own NAT, now
	Open   func(context.Context, peer.ID) (Stream, error)           // a stream for Protocol on a relayed connection
	Dial   func(context.Context, peer.ID, ma.Multiaddr, Role) error // nil error: a connection is there
	Opener func(to netip.AddrPort, hops int)                        // send a packet from the QUIC port; may be nil
	Wire   *Wire                                                    // to foretell ports; may be nil
	Name   func(peer.ID) string                                     // what a person calls it; may be nil
	// Direct's channel is closed as soon as there is a direct connection to the peer.
	Direct func(peer.ID) (direct <-chan struct{}, stop func())
	Log    *slog.Logger
}

// Outcome is what a punch led to.
type Outcome struct {
	Direct bool
	Step   string // the step at which it became direct
	Reason string // why not, for a person
	Took   time.Duration

	Probes, Sockets int // packets to foretold ports, and sockets that waited at some

	again bool // it was in vain, and the next attempt has fresh sockets
}

// ErrBusy says that the peer is punching with us already, by its own start.
var ErrBusy = errors.New("a punch by the peer is under way")

// Puncher punches with any number of peers, with each once at a time.
type Puncher struct {
	cfg    Config
	budget *budget
	mu     sync.Mutex
	runs   map[peer.ID]*run
	vain   map[peer.ID]bool // whose last punch led to nothing
}

// run is one punch with one peer.
type run struct {
	ours   bool      // started by us
	agreed time.Time // ours: when the reports were exchanged; zero: they are not
	yield  context.CancelFunc
	to     *run // the peer's, to which it gave way; nil: it did not
	done   chan struct{}

	outcome Outcome // set before done is closed
	err     error
}

// New returns a Puncher; it has no goroutines of its own.
func New(cfg Config) *Puncher {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Puncher{cfg: cfg, budget: newBudget(), runs: make(map[peer.ID]*run), vain: make(map[peer.ID]bool)}
}

// Punch tries for a direct connection to p. It returns when there is one, or the plan is through. If
// one is under way with p, by either side, it waits for that one's outcome.
func (pu *Puncher) Punch(ctx context.Context, p peer.ID) (Outcome, error) {
	r, own, ours := pu.begin(ctx, p, true)
	if ours {
		r.outcome, r.err = pu.initiate(own, p, r)
		if errors.Is(r.err, ErrBusy) && p < pu.cfg.Self {
			sleep(own, talkWithin) // for the peer's own, to which this one gives way
		}
		pu.end(p, r)
		if r.to == nil {
			return r.outcome, r.err
		}
	}
	return r.wait(ctx)
}

// wait gives r's outcome, or that of the one to which r gave way.
func (r *run) wait(ctx context.Context) (Outcome, error) {
	select {
	case <-r.done:
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
	if r.err != nil && r.to != nil {
		return r.to.wait(ctx)
	}
	return r.outcome, r.err
}

// Handle answers a punch that p started; it returns when it is over.
func (pu *Puncher) Handle(ctx context.Context, p peer.ID, s Stream) (Outcome, error) {
	r, ctx, ours := pu.begin(ctx, p, false)
	if !ours {
		s.SetDeadline(time.Now().Add(talkWithin))
		writeMessage(s, kindBusy, nil)
		s.Close()
		return Outcome{}, nil
	}
	r.outcome, r.err = pu.respond(ctx, p, s)
	pu.end(p, r)
	return r.outcome, r.err
}

// begin registers a run with p. One that is under way goes on, unless it gives way.
func (pu *Puncher) begin(ctx context.Context, p peer.ID, mine bool) (*run, context.Context, bool) {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	before := pu.runs[p]
	if before != nil && (mine || !before.givesWay(p < pu.cfg.Self)) {
		return before, ctx, false
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &run{ours: mine, yield: cancel, done: make(chan struct{})}
	pu.runs[p] = r
	if before != nil {
		before.to = r
		before.yield()
	}
	return r, ctx, true
}

// givesWay says whether r ends for a punch that the peer starts, whose ID may be the lower one. A peer that starts one has
// none under way as far as it knows: its network is another one, most likely, and the one that was is of no use. But what
// both start may cross.
func (r *run) givesWay(lower bool) bool {
	switch {
	case !r.ours:
		return true
	case r.agreed.IsZero():
		return lower
	}
	return time.Since(r.agreed) > talkWithin
}

// agreed says that r's reports are exchanged: now it does not give way to one that was begun meanwhile.
func (pu *Puncher) agreed(r *run) {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	if r.agreed.IsZero() {
		r.agreed = time.Now()
	}
}

func (pu *Puncher) end(p peer.ID, r *run) {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	r.yield()
	if pu.runs[p] == r {
		delete(pu.runs, p)
	}
	close(r.done)
}

// initiate is the coordinator's part.
func (pu *Puncher) initiate(ctx context.Context, p peer.ID, r *run) (Outcome, error) {
	open, cancel := context.WithTimeout(ctx, talkWithin)
	defer cancel()
	s, err := pu.cfg.Open(open, p)
	if err != nil {
		return Outcome{}, fmt.Errorf("punch %s: %w", p, err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	m := &meeting{peer: p}
	return m.twiceIfOfUse(func() (Outcome, error) { return pu.lead(ctx, m, r, s) })
}

// lead is one attempt as the coordinator.
func (pu *Puncher) lead(ctx context.Context, m *meeting, r *run, s Stream) (Outcome, error) {
	p := m.peer
	talk, cancel := context.WithTimeout(ctx, talkWithin)
	defer cancel()
	defer m.end()
	mine := pu.report(talk, m, nil)
	s.SetDeadline(time.Now().Add(talkWithin))

	sent := time.Now()
	if err := writeMessage(s, kindReport, mine.Marshal()); err != nil {
		return Outcome{}, fmt.Errorf("punch %s: send report: %w", p, err)
	}
	theirs, err := readReport(s)
	if err != nil {
		return Outcome{}, fmt.Errorf("punch %s: %w", p, err)
	}
	rtt := time.Since(sent)
	pu.agreed(r)
	if err := pu.plan(m, mine, theirs); err != nil {
		return Outcome{}, err
	}
	pu.openNAT(m, mine, theirs)
	if err := writeMessage(s, kindGo, nil); err != nil {
		return Outcome{}, fmt.Errorf("punch %s: say go: %w", p, err)
	}
	select {
	case <-time.After(rtt / 2):
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
	return pu.follow(ctx, m, mine, theirs)
}

// respond is the other side's part.
func (pu *Puncher) respond(ctx context.Context, p peer.ID, s Stream) (Outcome, error) {
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	m := &meeting{peer: p}
	return m.twiceIfOfUse(func() (Outcome, error) { return pu.answer(ctx, m, s) })
}

// answer is one attempt as the other side.
func (pu *Puncher) answer(ctx context.Context, m *meeting, s Stream) (Outcome, error) {
	p := m.peer
	s.SetDeadline(time.Now().Add(talkWithin))
	theirs, err := readReport(s)
	if err != nil {
		return Outcome{}, fmt.Errorf("punch by %s: %w", p, err)
	}
	defer m.end()
	mine := pu.report(ctx, m, &theirs)
	if err := pu.plan(m, mine, theirs); err != nil {
		return Outcome{}, err
	}
	pu.openNAT(m, mine, theirs)
	if err := writeMessage(s, kindReport, mine.Marshal()); err != nil {
		return Outcome{}, fmt.Errorf("punch by %s: send report: %w", p, err)
	}
	switch kind, _, err := readMessage(s); {
	case err != nil:
		return Outcome{}, fmt.Errorf("punch by %s: no go: %w", p, err)
	case kind != kindGo:
		return Outcome{}, fmt.Errorf("punch by %s: no go, but a message of kind %q", p, kind)
	}
	return pu.follow(ctx, m, mine, theirs)
}

// twiceIfOfUse makes an attempt, and at once another one if fresh sockets may do what the first one could not. If the
// peer ends the stream before it, or there are none, the first one's outcome stands.
func (m *meeting) twiceIfOfUse(attempt func() (Outcome, error)) (Outcome, error) {
	first, err := attempt()
	if err != nil || !first.again {
		return first, err
	}
	m.second = true
	second, err := attempt()
	if err != nil {
		return first, nil
	}
	second.Took += first.Took
	return second, nil
}

// errNothingNew says that a second attempt would do what the first one did. Both sides find that out.
var errNothingNew = errors.New("no fresh socket to try again with")

// plan makes the plan that both sides compute from the two reports.
func (pu *Puncher) plan(m *meeting, mine, theirs Report) error {
	low, high := mine, theirs
	if m.high = m.peer < pu.cfg.Self; m.high {
		low, high = theirs, mine
	}
	m.plan, m.token = MakePlan(low, high), tokenOf(low, high)
	pu.cfg.Log.Debug("punch plan", "peer", m.peer, "steps", len(m.plan.Steps), "our_udp", mine.UDP, "our_tcp", mine.TCP, "their_udp", theirs.UDP, "their_tcp", theirs.TCP)
	if m.second && !m.plan.usesFresh() {
		return errNothingNew
	}
	return nil
}

// report is ours as the peer will read it, so that both plan from the same. theirs is nil if we do not have it yet.
func (pu *Puncher) report(ctx context.Context, m *meeting, theirs *Report) Report {
	r := pu.cfg.Report(ctx)
	r.Steps = []string{StepDirect, StepOpen, StepForward}
	if w := pu.cfg.Wire; w != nil {
		r.Steps = append(r.Steps, StepFresh, Again)
		pu.freshen(ctx, m, &r, theirs)
		if (w.Guessing == nil || w.Guessing()) && pu.budget.left(m.peer) {
			r.Steps = append(r.Steps, StepPredict, StepGuess)
		}
	}
	r.Nonce = make([]byte, nonceSize)
	rand.Read(r.Nonce)
	same, err := ParseReport(r.Marshal())
	if err != nil {
		pu.cfg.Log.Error("own NAT report does not parse", "err", err)
	}
	return same
}

func readReport(r io.Reader) (Report, error) {
	kind, body, err := readMessage(r)
	switch {
	case err != nil:
		return Report{}, fmt.Errorf("read report: %w", err)
	case kind == kindBusy:
		return Report{}, ErrBusy
	case kind != kindReport:
		return Report{}, fmt.Errorf("read report: message of kind %q", kind)
	}
	return ParseReport(body)
}

// openNAT makes our NAT let in what will come from the peer's addresses, before any packet can arrive
// there that would spoil it. Where the peer's packets will come from other ports it would do nothing
// but use up one of ours.
func (pu *Puncher) openNAT(m *meeting, mine, theirs Report) {
	mine, theirs = outside(mine, theirs)
	if to, ok := theirs.fresh4(); ok && m.fresh != nil {
		for range openers {
			m.fresh.Send(make([]byte, 1+tokenSize), to, openerHops)
		}
	}
	if pu.cfg.Opener == nil {
		return
	}
	for _, a := range theirs.UDP.Observed {
		if to, ok := addrPort(a); ok && (to.Addr().Is6() || canOpen(mine.UDP, theirs.UDP)) {
			for range openers {
				pu.cfg.Opener(to, openerHops)
			}
		}
	}
}

// follow does our part of the plan, by the clock, until there is a direct connection.
func (pu *Puncher) follow(ctx context.Context, m *meeting, mine, theirs Report) (Outcome, error) {
	p, plan := m.peer, m.plan
	m.vouched = pu.cfg.Wire != nil && pu.cfg.Wire.Vouched(p, theirs)
	start := time.Now()
	direct, stop := pu.cfg.Direct(p)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	var acts sync.WaitGroup
	defer acts.Wait()
	defer cancel()

	last := time.Duration(0)
	for _, step := range plan.Steps {
		part := step.Low
		if m.high {
			part = step.High
		}
		pu.act(ctx, &acts, m, step, part)
		last = max(last, step.At+step.For)
	}
	over := time.NewTimer(last)
	defer over.Stop()
	var o Outcome
	var err error
	select {
	case <-direct:
		pu.setVain(p, false)
		o.Direct, o.Step = true, plan.stepAt(time.Since(start))
	case <-over.C:
		pu.setVain(p, true)
		o.again = wantFresh(mine, theirs)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if !o.Direct {
		name := ""
		if pu.cfg.Name != nil {
			name = pu.cfg.Name(p)
		}
		o.Reason = reason(mine, theirs, name, tried(plan, m))
	}
	o.Took = time.Since(start)
	m.note(func() { o.Probes, o.Sockets = m.probes, m.sockets })
	return o, err
}

// act begins our part of a step; it ends with ctx or with the step.
func (pu *Puncher) act(ctx context.Context, acts *sync.WaitGroup, m *meeting, step Step, part Part) {
	for _, d := range part.Dials {
		acts.Go(func() { pu.dial(ctx, m.peer, step, d) })
	}
	if part.Array == nil && part.Spray == nil {
		return
	}
	acts.Go(func() {
		if !sleep(ctx, step.At) {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, step.For)
		defer cancel()
		if part.Array != nil {
			pu.wait(ctx, m, *part.Array)
		} else {
			pu.spray(ctx, m, *part.Spray)
		}
	})
}

// dial is one dial of a step.
func (pu *Puncher) dial(ctx context.Context, p peer.ID, step Step, d Dial) {
	if !sleep(ctx, step.At+d.After) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, step.For-d.After)
	defer cancel()
	for {
		err := pu.cfg.Dial(ctx, p, d.Addr, d.Role)
		pu.cfg.Log.Debug("punch dial", "peer", p, "step", step.Name, "addr", d.Addr, "role", d.Role, "err", err)
		if err == nil || d.Role == Plain || transportOf(d.Addr) != "tcp" || !pu.budget.redial(p) || !sleep(ctx, tcpAgain) {
			return
		}
	}
}

// stepAt names the last step that had begun.
func (p Plan) stepAt(t time.Duration) string {
	name := ""
	for _, s := range p.Steps {
		if s.At <= t {
			name = s.Name
		}
	}
	return name
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
