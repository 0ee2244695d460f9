package punch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// internet is two NATs that map each destination anew, or keep a port, and let in only ports that were
// sent to. Packets take 20 ms.
type internet struct {
	mu    sync.Mutex
	ports map[netip.AddrPort]*fakeSocket // outside ends
	sent  []sentPacket                   // with full life
}

type sentPacket struct {
	at       time.Time
	from, to netip.AddrPort
	kind     byte
}

type fakeSocket struct {
	net     *internet
	outside netip.AddrPort
	next    func() netip.AddrPort // the mapping of the first flow
	in      chan fakePacket
	closed  chan struct{}
	once    sync.Once
	taken   chan struct{} // closed when its side speaks QUIC there; nil: it always does
	spoken  map[netip.AddrPort]bool
}

type fakePacket struct {
	from netip.AddrPort
	b    []byte
}

func (n *internet) socket(next func() netip.AddrPort) *fakeSocket {
	return &fakeSocket{net: n, next: next, in: make(chan fakePacket, 64), closed: make(chan struct{}), spoken: make(map[netip.AddrPort]bool)}
}

func (s *fakeSocket) Send(b []byte, to netip.AddrPort, hops int) error {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if !s.outside.IsValid() {
		s.outside = s.next()
		n.ports[s.outside] = s
	}
	s.spoken[to] = true
	if hops > 0 {
		return nil
	}
	from := s.outside
	n.sent = append(n.sent, sentPacket{time.Now(), from, to, append(b, 0)[0]})
	time.AfterFunc(20*time.Millisecond, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if r := n.ports[to]; r != nil && r.spoken[from] {
			select {
			case r.in <- fakePacket{from, b}:
			default:
			}
		}
	})
	return nil
}

func (s *fakeSocket) Receive(b []byte) (int, netip.AddrPort, error) {
	select {
	case p := <-s.in:
		return copy(b, p.b), p.from, nil
	case <-s.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (s *fakeSocket) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

// withWire gives a side a QUIC socket and fresh ones, all at ip. Take succeeds when both ends' sockets are taken, for a
// handshake needs both.
func (s *side) withWire(n *internet, ip string, fresh func() uint16) {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
	main := n.socket(func() netip.AddrPort { return at(4001 + s.moved) })
	next := func() netip.AddrPort { return at(fresh()) }
	s.cfg.Wire = &Wire{
		Probe: func(to netip.AddrPort, b []byte) error { return main.Send(b, to, 0) },
		Hear: func(token Token) (<-chan netip.AddrPort, func()) {
			heard := make(chan netip.AddrPort, 1)
			go func() {
				b := make([]byte, 64)
				for {
					m, from, err := main.Receive(b)
					if err != nil {
						return
					}
					if t, ok := ReadToken(b[:m]); ok && t == token {
						heard <- from
						return
					}
				}
			}()
			return heard, func() { main.Close() }
		},
		Socket: func() (Socket, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.newFresh(n, next), nil
		},
		Fresh: func(context.Context) (Socket, netip.AddrPort, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			f := s.newFresh(n, next)
			f.Send(nil, netip.MustParseAddrPort("7.9.9.9:4002"), 64)
			return f, f.outside, nil
		},
		Take: func(ctx context.Context, _ peer.ID, k Socket, to netip.AddrPort, role Role) error {
			if s.refuse {
				k.Close()
				return errors.New("a stranger")
			}
			switch role {
			case Server:
				close(k.(*fakeSocket).taken)
			case Client:
				n.mu.Lock()
				there := n.ports[to]
				n.mu.Unlock()
				if there.taken != nil {
					select {
					case <-there.taken:
					case <-ctx.Done():
						k.Close()
						return ctx.Err()
					}
				}
				s.once.Do(func() { close(s.direct) })
				s.other.once.Do(func() { close(s.other.direct) })
			}
			return nil
		},
		Vouched: func(peer.ID, Report) bool { return !s.distrusts },
	}
}

// newFresh makes one of the side's fresh sockets.
func (s *side) newFresh(n *internet, next func() netip.AddrPort) *fakeSocket {
	f := n.socket(next)
	f.taken = make(chan struct{})
	s.fresh = append(s.fresh, f)
	return f
}

func noTCP(r Report) Report { r.TCP = Transport{}; r.LAN = nil; return r }

func randomPort() uint16 { return uint16(lowestPort + rand.IntN(65536-lowestPort)) }

func sequencer(next uint16) func() uint16 { return func() uint16 { next++; return next - 1 } }

func TestBirthdayPunchMeetsWithinItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			n          *internet
			hard, easy *side
			o          Outcome
			err        error
		)
		for range 3 { // chance fails one in 3000
			n = &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
			hard, easy = newSides(noTCP(strict(nat(1, Dependent, false))), noTCP(strict(nat(2, Independent, true))))
			hard.withWire(n, "7.0.0.1", randomPort)
			easy.withWire(n, "7.0.0.2", randomPort)
			if o, err = hard.Punch(t.Context(), "b"); err != nil || o.Direct {
				break
			}
		}
		if err != nil || !o.Direct || o.Step != StepGuess {
			t.Fatalf("outcome %+v, %v", o, err)
		}
		synctest.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		known := map[uint16]bool{4001: true} // of the easy side: its QUIC port and, in the second round, the fresh one that it told
		for _, s := range easy.fresh {
			known[s.outside.Port()] = true
		}
		var probes []sentPacket
		for _, p := range n.sent {
			switch {
			case p.to.Addr() == netip.MustParseAddr("7.0.0.1"):
				probes = append(probes, p)
			case !known[p.to.Port()]: // else an answer to one
				t.Errorf("a packet to %v", p.to)
			}
		}
		for i, p := range probes {
			if j := i + probeRate + 1; j < len(probes) && probes[j].at.Sub(p.at) < time.Second {
				t.Fatalf("more than %d packets in a second", probeRate)
			}
		}
		if o.Sockets > guessArray+2*guessArray || len(probes) > 2*roundPorts {
			t.Errorf("%d sockets, %d packets", o.Sockets, len(probes))
		}
		open := 0
		for _, s := range hard.fresh {
			select {
			case <-s.closed:
			default:
				open++
			}
		}
		if open != 1 {
			t.Errorf("%d sockets left open, want the one that is used", open)
		}
	})
}

// Who gave way waits for the other run, however long that guesses: neither side gives up meanwhile.
func TestPunchStartedByBothAtOnceHasOneOutcome(t *testing.T) {
	vain := func(s *side) { s.refuse = true }
	for name, c := range map[string]struct {
		prepare func(lower, higher *side)
		direct  bool
	}{
		"they meet":                              {func(lower, higher *side) {}, true},
		"in vain":                                {func(lower, higher *side) { vain(lower); vain(higher) }, false},
		"in vain, the higher's request is first": {func(lower, higher *side) { vain(lower); vain(higher); late(lower) }, false},
	} {
		for _, lowerIsHard := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the lower is hard: %v", name, lowerIsHard), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
					hard, easy := noTCP(strict(nat(1, Dependent, false))), noTCP(strict(nat(2, Independent, true)))
					a, b := newSides(hard, easy)
					first, second := "7.0.0.1", "7.0.0.2"
					if !lowerIsHard {
						a, b = newSides(easy, hard)
						first, second = second, first
					}
					a.withWire(n, first, randomPort)
					b.withWire(n, second, randomPort)
					c.prepare(a, b)
					var outcomes [2]Outcome
					var both sync.WaitGroup
					for i, s := range []*side{a, b} {
						both.Go(func() {
							var err error
							if outcomes[i], err = s.Punch(t.Context(), []peer.ID{"b", "a"}[i]); err != nil {
								t.Error(err)
							}
						})
					}
					both.Wait()
					if outcomes[0].Direct != c.direct || outcomes[1].Direct != c.direct || !c.direct && (outcomes[0].Reason == "" || outcomes[1].Reason == "") {
						t.Errorf("outcomes %+v", outcomes)
					}
					if !c.direct && outcomes[1].Took <= talkWithin {
						t.Errorf("over after %v: too short to show anything", outcomes[1].Took)
					}
				})
			})
		}
	}
}

// late has what a side starts arrive a second later.
func late(s *side) {
	open := s.cfg.Open
	s.cfg.Open = func(ctx context.Context, p peer.ID) (Stream, error) {
		time.Sleep(time.Second)
		return open(ctx, p)
	}
}

func TestWhoGaveWayWaitsNoLongerThanItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newSides(nat(1, Independent, true), nat(2, Independent, true))
		late(a)
		go a.Punch(t.Context(), "b")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := b.Punch(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		time.Sleep(time.Minute) // the other run ends
	})
}

func TestPredictionMeets(t *testing.T) {
	for name, other := range map[string]Report{
		"one port for all":   noTCP(strict(nat(2, Independent, true))),
		"another sequence":   sequence(noTCP(strict(nat(2, Dependent, false))), 52000, 2),
		"a falling sequence": sequence(noTCP(strict(nat(2, Dependent, false))), 52000, -1),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
				a, b := newSides(sequence(noTCP(strict(nat(1, Dependent, false))), 42000, 1), other)
				a.withWire(n, "7.0.0.1", sequencer(42003)) // two foreign flows came between
				next := int(other.UDP.Ports.Last)
				b.withWire(n, "7.0.0.2", func() uint16 { next += other.UDP.Ports.Step; return uint16(next) })
				o, err := b.Punch(t.Context(), "a")
				if err != nil || !o.Direct || o.Step != StepPredict {
					t.Errorf("outcome %+v, %v", o, err)
				}
				synctest.Wait()
				n.mu.Lock()
				defer n.mu.Unlock()
				if len(n.sent) > 2*predictAhead+2*bothArray+4 {
					t.Errorf("%d packets", len(n.sent))
				}
			})
		})
	}
}

func TestFailureSaysWhatCameBack(t *testing.T) {
	for name, c := range map[string]struct {
		change func(hard, easy *side)
		want   string
	}{
		"nothing": {func(hard, easy *side) {
			hard.withWire(&internet{ports: map[netip.AddrPort]*fakeSocket{}}, "7.0.0.1", randomPort)
		}, "nothing came back"},
		"a stranger":  {func(hard, easy *side) { hard.refuse = true }, "but no connection: a stranger"},
		"not vouched": {func(hard, easy *side) { easy.distrusts = true }, "no relay vouches for the peer's address"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
				hard, easy := newSides(noTCP(strict(nat(1, Dependent, false))), noTCP(strict(nat(2, Independent, true))))
				hard.withWire(n, "7.0.0.1", sequencer(1024)) // meets in every round
				easy.withWire(n, "7.0.0.2", randomPort)
				c.change(hard, easy)
				who, other := easy, peer.ID("a")
				if hard.refuse {
					who, other = hard, "b"
				}
				o, err := who.Punch(t.Context(), other)
				if err != nil || o.Direct || !strings.Contains(o.Reason, c.want) {
					t.Errorf("outcome %+v, %v; want %q", o, err, c.want)
				}
				if easy.distrusts && len(n.sent) > 0 {
					t.Errorf("%d packets to an address that nobody vouches for", len(n.sent))
				}
			})
		})
	}
}

// A report may name anybody's address: neither packets go there, nor is what may be sent there used up.
func TestNoArrayIsOpenedToAnAddressThatNobodyVouchesFor(t *testing.T) {
	hard := noTCP(strict(nat(1, Dependent, false)))
	for name, c := range map[string]struct{ here, there Report }{
		"to guess":                {hard, noTCP(strict(nat(2, Independent, true)))},
		"to foretell":             {sequence(hard, 42000, 1), noTCP(strict(nat(2, Independent, true)))},
		"where both are foretold": {sequence(hard, 42000, 1), sequence(noTCP(strict(nat(2, Dependent, false))), 52000, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
				a, b := newSides(c.here, c.there)
				a.withWire(n, "7.0.0.1", randomPort)
				b.withWire(n, "7.0.0.2", randomPort)
				a.distrusts = true
				b.refuse = true // what it hears leads to nothing
				o, err := a.Punch(t.Context(), "b")
				if err != nil || o.Direct || !strings.Contains(o.Reason, "no relay vouches for the peer's address") {
					t.Errorf("%+v, %v", o, err)
				}
				synctest.Wait()
				if len(a.fresh) > 0 {
					t.Errorf("%d sockets", len(a.fresh))
				}
				if spent := a.budget.addrs[netip.MustParseAddr("7.0.0.2")]; spent != nil {
					t.Errorf("%d ports of that address's are used up", spent.count)
				}
			})
		})
	}
}

func TestGuessingCanBeTurnedOff(t *testing.T) {
	hard, _ := newSides(noTCP(strict(nat(1, Dependent, false))), noTCP(strict(nat(2, Independent, true))))
	hard.withWire(&internet{}, "7.0.0.1", randomPort)
	hard.cfg.Wire.Guessing = func() bool { return false }
	r := hard.Puncher.report(t.Context(), &meeting{peer: "b"}, nil)
	if slices.Contains(r.Steps, StepPredict) || slices.Contains(r.Steps, StepGuess) {
		t.Errorf("steps %v", r.Steps)
	}
}

// A direct path was there and is no more: a router may hold its ports, so nobody waits for simultaneous open to fail.
func TestTheFirstPunchAfterALostDirectPathMeetsAtFreshPorts(t *testing.T) {
	for _, lost := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
			a, b := newSides(noTCP(strict(nat(1, Independent, true))), noTCP(strict(nat(2, Independent, true))))
			a.withWire(n, "7.0.0.1", randomPort)
			b.withWire(n, "7.0.0.2", randomPort)
			a.cfg.Wire.HadDirect = func(peer.ID) bool { return lost }
			o, err := a.Punch(t.Context(), "b")
			if err != nil || !o.Direct || o.Step != StepFresh || lost != (o.Took < openFor) {
				t.Errorf("lost before: %v: %+v, %v", lost, o, err)
			}
		})
	}
}

// What simultaneous open should have done and has not is done from sockets that no router remembers.
func TestWhatSimultaneousOpenCouldNotDoIsDoneAtOnceFromFreshPorts(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(a, b *side)
		direct  bool
	}{
		"from both sides":                     {func(a, b *side) {}, true},
		"with guessing turned off":            {func(a, b *side) { b.cfg.Wire.Guessing = func() bool { return false } }, true},
		"if one relay's word is doubted":      {func(a, b *side) { b.distrusts = true }, true},
		"not if nobody vouches for addresses": {func(a, b *side) { a.distrusts, b.distrusts = true, true }, false},
		"not if the carrier has more addresses": {func(a, b *side) {
			ask := b.cfg.Wire.Fresh
			b.cfg.Wire.Fresh = func(ctx context.Context) (Socket, netip.AddrPort, error) {
				s, _, err := ask(ctx)
				return s, netip.MustParseAddrPort("7.0.0.3:50000"), err
			}
		}, false},
		"not with a peer that has none": {func(a, b *side) { b.cfg.Wire = nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
				a, b := newSides(noTCP(strict(nat(1, Independent, true))), noTCP(strict(nat(2, Independent, true))))
				a.withWire(n, "7.0.0.1", randomPort)
				b.withWire(n, "7.0.0.2", randomPort)
				c.prepare(a, b)
				time.AfterFunc(2*openFor-time.Millisecond, func() {
					n.mu.Lock()
					defer n.mu.Unlock()
					if len(a.fresh)+len(b.fresh) > 0 || len(n.sent) > 0 {
						t.Errorf("the first attempt took %d sockets and %d packets", len(a.fresh)+len(b.fresh), len(n.sent))
					}
				})
				o, err := a.Punch(t.Context(), "b")
				if err != nil || o.Direct != c.direct || c.direct && o.Step != StepFresh || o.Took < 2*openFor || o.Took > 4*openFor {
					t.Fatalf("%+v, %v", o, err)
				}
				synctest.Wait()
				if len(n.sent) > 2*(freshTimes+1) {
					t.Errorf("%d packets", len(n.sent))
				}
				for _, s := range append(a.fresh, b.fresh...) {
					select {
					case <-s.closed:
						if c.direct {
							t.Error("closed the socket that is used")
						}
					default:
						if !c.direct {
							t.Error("left a socket open")
						}
					}
				}
			})
		})
	}
}

// The same once more would be as much in vain: no fresh socket is to be had, because the relay's reflector is closed, or
// no step would use one.
func TestNothingIsDoneTwiceWithoutAFreshSocket(t *testing.T) {
	easy := func(n int) Report { return noTCP(strict(nat(n, Unknown, true))) }
	for name, c := range map[string]struct {
		here, there Report
		none        bool // no fresh socket is to be had
	}{
		"nobody says where one is seen":        {here: easy(1), there: easy(2), none: true},
		"nobody knows how one side gets ports": {here: noTCP(strict(nat(1, Unknown, false))), there: easy(2)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
				a, b := newSides(c.here, c.there)
				for _, s := range []*side{a, b} {
					s.withWire(n, "7.0.0.9", randomPort)
					if c.none {
						s.cfg.Wire.Fresh = func(context.Context) (Socket, netip.AddrPort, error) {
							return nil, netip.AddrPort{}, errors.New("no answer")
						}
					}
				}
				for _, begins := range []*side{b, a} {
					other := peer.ID("a")
					if begins == a {
						other = "b"
					}
					before := begins.count()
					o, err := begins.Punch(t.Context(), other)
					if err != nil || o.Direct || o.Reason == "" || o.Took != 2*openFor || begins.count()-before != 2 {
						t.Errorf("%+v, %v; %d dials, want 2", o, err, begins.count()-before)
					}
					if len(a.fresh)+len(b.fresh) > 0 {
						t.Errorf("%d and %d sockets are opened for nothing", len(a.fresh), len(b.fresh))
					}
					synctest.Wait()
				}
			})
		})
	}
}

// A fresh socket that sprays waits for the answer, and one packet may be lost.
func TestTheAnswerToAPacketThatWasHeardIsSentMoreThanOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
		hard, easy := newSides(sequence(noTCP(strict(nat(1, Dependent, false))), 42000, 1), noTCP(strict(nat(2, Independent, true))))
		hard.withWire(n, "7.0.0.1", sequencer(42001))
		easy.withWire(n, "7.0.0.2", randomPort)
		if o, err := hard.Punch(t.Context(), "b"); err != nil || !o.Direct {
			t.Fatalf("%+v, %v", o, err)
		}
		synctest.Wait()
		answers := 0
		for _, p := range n.sent {
			if p.kind == kindHeard {
				answers++
			}
		}
		if answers != heardTimes {
			t.Errorf("%d answers, want %d", answers, heardTimes)
		}
	})
}

// The answer to the last packet comes when nothing more is sent.
func TestAnAnswerToTheLastPacketIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
		easy, _ := newSides(noTCP(nat(1, Independent, true)), noTCP(nat(2, Dependent, false)))
		easy.withWire(n, "7.0.0.1", randomPort)
		easy.refuse = true
		here, there := netip.MustParseAddrPort("7.0.0.1:50000"), netip.MustParseAddrPort("7.0.0.2:60000")
		fresh, hard := n.socket(func() netip.AddrPort { return here }), n.socket(func() netip.AddrPort { return there })
		m := &meeting{peer: "b", vouched: true, token: Token{1}}
		hard.Send(nil, here, openerHops)
		time.AfterFunc(100*time.Millisecond, func() { hard.Send(m.token.packet(kindHeard), here, 0) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		easy.sprayFresh(ctx, m, Spray{To: there.Addr(), List: []uint16{there.Port()}, Times: 1}, fresh)
		if m.heard != 1 || m.failed == nil {
			t.Errorf("%d packets heard, the handshake: %v", m.heard, m.failed)
		}
	})
}

func TestWhatAPunchInVainHasCostIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
		hard, easy := newSides(noTCP(strict(nat(1, Dependent, false))), noTCP(strict(nat(2, Independent, true))))
		hard.withWire(n, "7.0.0.1", randomPort)
		easy.withWire(n, "7.0.0.2", randomPort)
		hard.refuse = true
		o, err := hard.Punch(t.Context(), "b")
		if err != nil || o.Direct || o.Sockets != guessArray+2*guessArray {
			t.Errorf("%+v, %v", o, err)
		}
	})
}

// A router gives the easy side's QUIC port another number than its relay sees: nothing meets there.
func TestASpoiltQUICPortIsLeftAloneInTheSecondAttempt(t *testing.T) {
	random := noTCP(strict(nat(1, Dependent, false)))
	block := with(random, func(r *Report) { r.UDP.Ports = Ports{Order: Block, Low: 50000, High: 50511} })
	for step, c := range map[string]struct {
		hard Report
		port func() uint16
	}{
		StepGuess:   {block, func() uint16 { return uint16(50000 + rand.IntN(512)) }}, // 128 of 512: met but once in 10⁶⁰
		StepPredict: {sequence(random, 42000, 1), sequencer(42003)},
	} {
		for _, hardBegins := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the hard side begins: %v", step, hardBegins), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
					hard, easy := newSides(c.hard, noTCP(strict(nat(2, Independent, true))))
					hard.withWire(n, "7.0.0.1", c.port)
					easy.moved = 998
					easy.withWire(n, "7.0.0.2", randomPort)
					who, other := easy, peer.ID("a")
					if hardBegins {
						who, other = hard, "b"
					}
					o, err := who.Punch(t.Context(), other)
					if err != nil || !o.Direct || o.Step != step {
						t.Fatalf("%+v, %v", o, err)
					}
				})
			})
		}
	}
}

// One of before knows of no second attempt: it ends the stream, and the next punch is a new one.
func TestAPeerThatEndsTheStreamLeavesTheFirstAttemptsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{ports: make(map[netip.AddrPort]*fakeSocket)}
		a, b := newSides(noTCP(strict(nat(1, Independent, true))), noTCP(strict(nat(2, Independent, true))))
		a.withWire(n, "7.0.0.1", randomPort)
		b.withWire(n, "7.0.0.2", randomPort)
		a.cfg.Open = func(ctx context.Context, p peer.ID) (Stream, error) {
			here, there := net.Pipe()
			go func() {
				b.answer(t.Context(), &meeting{peer: "a"}, pipe{there})
				there.Close()
			}()
			return pipe{here}, nil
		}
		for _, direct := range []bool{false, true} {
			o, err := a.Punch(t.Context(), "b")
			if err != nil || o.Direct != direct || !direct && o.Reason == "" {
				t.Fatalf("%+v, %v, want direct: %v", o, err, direct)
			}
			synctest.Wait()
		}
	})
}

func TestBudgetsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget()
		addr := netip.MustParseAddr("7.0.0.1")
		take := func(p peer.ID) (n int) {
			for b.port(p, addr) {
				n++
			}
			return n
		}
		if n := take("x"); n != addrPorts {
			t.Errorf("%d ports of one address, want %d", n, addrPorts)
		}
		if b.left("x") {
			t.Error("another round would have to end at once")
		}
		if n := take("y"); n != 0 {
			t.Errorf("%d more for another peer at that address", n)
		}
		time.Sleep(addrSpan)
		if n := take("x"); n != dayPorts-addrPorts {
			t.Errorf("%d more, want the rest of the day's %d", n, dayPorts)
		}
		time.Sleep(addrSpan)
		if n := take("x"); n != 0 || b.left("x") {
			t.Errorf("%d ports beyond the day's", n)
		}
		time.Sleep(day)
		if !b.left("x") {
			t.Error("a new day brings nothing")
		}
		begun, n := time.Now(), 0
		for time.Since(begun) < time.Second {
			b.packet(t.Context())
			n++
		}
		if n > packetsPerSecond+packetsAtOnce+1 {
			t.Errorf("%d packets in a second", n)
		}
	})
}

func FuzzReadToken(f *testing.F) {
	f.Add(Token{1}.packet(kindProbe))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if token, ok := ReadToken(b); ok && string(token.packet(b[0])) != string(b) {
			t.Errorf("%x", b)
		}
	})
}
