package datagram

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// echoSink sends back what comes.
type echoSink struct {
	flow  atomic.Pointer[Flow]
	ended atomic.Bool
}

func (s *echoSink) Deliver(b []byte) { s.flow.Load().Send(b) }
func (s *echoSink) Ended(error)      { s.ended.Store(true) }

// A box keeps what comes back, and when.
type box struct {
	mu  sync.Mutex
	got [][]byte
	at  []time.Time
	err error
}

func (b *box) Deliver(d []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, bytes.Clone(d))
	b.at = append(b.at, time.Now())
}

func (b *box) Ended(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *box) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.got)
}

// all is what came, and when.
func (b *box) all() ([][]byte, []time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got, b.at
}

func (b *box) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// each runs a test over a stream alone and with packets, in virtual time.
func each(t *testing.T, f func(t *testing.T, pr *pair, p *path)) {
	for _, packets := range []bool{false, true} {
		t.Run(fmt.Sprintf("packets=%v", packets), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &path{delay: 20 * time.Millisecond}
				pr := newPair(t, packets, p)
				f(t, pr, p)
				pr.stop()
				time.Sleep(2 * time.Second) // timers of retired carriers
			})
		})
	}
}

// dial opens a flow once there is a carrier.
func (pr *pair) dial(service string) (*Flow, *box) {
	pr.t.Helper()
	b := &box{}
	f, err := pr.c.Dial("e", service, b)
	if err != nil {
		pr.t.Fatal(err)
	}
	time.Sleep(time.Second)
	return f, b
}

// question is a flow's first datagram, to be answered.
func (pr *pair) question() (*Flow, *box) {
	pr.t.Helper()
	b := &box{}
	f, err := pr.c.Dial("e", "echo", b)
	if err != nil {
		pr.t.Fatal(err)
	}
	f.Send([]byte("question"))
	return f, b
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(n + i*7)
	}
	return b
}

func TestEveryDatagramComesBackWholeWhateverItsSize(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		f, back := pr.dial("echo")
		var sizes []int
		for n := 0; n <= 2000; n++ {
			sizes = append(sizes, n)
		}
		sizes = append(sizes, 9000, 32768, MaxSize-1, MaxSize)
		for _, n := range sizes {
			f.Send(pattern(n))
			time.Sleep(5 * time.Millisecond)
			if n > 2000 { // two of the largest have no room in the queue
				time.Sleep(300 * time.Millisecond)
			}
		}
		f.Send(make([]byte, MaxSize+1)) // dropped
		time.Sleep(time.Second)
		seen := map[int]int{}
		got, _ := back.all()
		for _, b := range got {
			if !bytes.Equal(b, pattern(len(b))) {
				t.Fatalf("a datagram of %d bytes is not as it was sent", len(b))
			}
			seen[len(b)]++
		}
		for _, n := range sizes {
			if seen[n] != 1 {
				t.Errorf("of size %d came %d, want 1", n, seen[n])
			}
		}
		if len(got) != len(sizes) || pr.offers() != 1 {
			t.Errorf("%d came back of %d, by %d flows", len(got), len(sizes), pr.offers())
		}
		if info := f.Info(); info.Dropped != 1 || !info.Attached || info.Sent != info.Received {
			t.Errorf("%+v", info)
		}
	})
}

func TestTheFirstDatagramCostsNoRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, p *path) {
		back := &box{}
		f, err := pr.c.Dial("e", "dns", back)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		f.Send([]byte("question"))
		time.Sleep(time.Second)
		if _, at := back.all(); len(at) != 1 || at[0].Sub(began) != 2*p.delay {
			t.Errorf("answers came at %v, the question went at %v", at, began)
		}
	})
}

func TestBothEndsTellTheFlowByTheSameID(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		f, _ := pr.dial("echo")
		f.Send([]byte("x"))
		time.Sleep(time.Second)
		there := pr.e.Flows()
		if len(there) != 1 || there[0].ID != f.Info().ID || there[0].Role != "exit" || there[0].Service != "echo" {
			t.Errorf("here %+v, there %+v", f.Info(), there)
		}
	})
}

// run sends a numbered datagram each 10 ms and returns which came back, and the longest time between two answers.
func (pr *pair) run(f *Flow, back *box, n int, during func(i int)) (missing, doubled int, gap time.Duration) {
	back.mu.Lock()
	back.got, back.at = nil, nil
	back.mu.Unlock()
	for i := range n {
		f.Send(binary.BigEndian.AppendUint32(nil, uint32(i)))
		during(i)
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(time.Second)
	seen := map[uint32]int{}
	got, at := back.all()
	for i, b := range got {
		seen[binary.BigEndian.Uint32(b)]++
		if i > 0 {
			gap = max(gap, at[i].Sub(at[i-1]))
		}
	}
	for i := range n {
		switch seen[uint32(i)] {
		case 0:
			missing++
		case 1:
		default:
			doubled++
		}
	}
	return missing, doubled, gap
}

func TestABetterPathIsTakenWithoutLossAndTheFlowGoesOn(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		f, back := pr.dial("echo")
		better := &path{delay: 2 * time.Millisecond}
		missing, doubled, gap := pr.run(f, back, 500, func(i int) {
			if i == 200 {
				pr.add(better)
				pr.c.Renew("e")
			}
		})
		if missing+doubled > 0 || gap > 50*time.Millisecond || pr.offers() != 1 {
			t.Errorf("missing %d, doubled %d, longest gap %v, flows offered %d", missing, doubled, gap, pr.offers())
		}
		_, at := back.all()
		if last := at[len(at)-1].Sub(at[len(at)-2]); last != 10*time.Millisecond {
			t.Errorf("the last two came %v apart", last)
		}
	})
}

func TestABrokenPathIsReplacedAtOnce(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, first *path) {
		f, back := pr.dial("echo")
		pr.add(&path{delay: 40 * time.Millisecond})
		time.Sleep(15 * time.Second)
		missing, doubled, gap := pr.run(f, back, 500, func(i int) {
			if i == 200 {
				pr.lose(first)
			}
		})
		if missing > 20 || doubled > 0 || gap > 300*time.Millisecond || pr.offers() != 1 {
			t.Errorf("missing %d, doubled %d, longest gap %v, flows offered %d", missing, doubled, gap, pr.offers())
		}
	})
}

func TestASilentPathIsLeftWithinThreeSeconds(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, first *path) {
		f, back := pr.dial("echo")
		other := &path{delay: 40 * time.Millisecond}
		missing, doubled, gap := pr.run(f, back, 1000, func(i int) {
			if i == 200 {
				first.fallSilent()
				pr.mu.Lock()
				pr.paths = []*path{first}
				pr.mu.Unlock()
			}
			if i == 210 {
				pr.add(other)
				pr.mu.Lock()
				pr.paths = []*path{other, first} // only who avoids the first finds it
				pr.mu.Unlock()
			}
		})
		if missing > 300 || doubled > 0 || gap > 3*time.Second || pr.offers() != 1 {
			t.Errorf("missing %d, doubled %d, longest gap %v, flows offered %d", missing, doubled, gap, pr.offers())
		}
	})
}

func TestWhatOnlyTheExitSendsFindsTheNewPathToo(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, first *path) {
		f, back := pr.dial("echo")
		f.Send([]byte("begin"))
		time.Sleep(time.Second)
		var exit *Flow
		for _, h := range pr.e.halves() {
			exit = h.all()[0]
		}
		other := &path{delay: 40 * time.Millisecond}
		for i := range 1000 {
			if i == 200 {
				first.fallSilent()
				pr.add(other)
			}
			exit.Send([]byte("news"))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		gap := time.Duration(0)
		_, at := back.all()
		for i := range at[1:] {
			gap = max(gap, at[i+1].Sub(at[i]))
		}
		if gap > 3*time.Second || back.count() < 650 {
			t.Errorf("%d came, longest gap %v", back.count(), gap)
		}
	})
}

func TestIdleFlowsEndAtBothEnds(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		f, once := pr.dial("echo") // a question and an answer
		f.Send([]byte("a"))
		g, often := pr.dial("echo")
		for range 4 {
			g.Send([]byte("b"))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Second)
		if n := len(pr.c.Flows()) + len(pr.e.Flows()); n != 4 {
			t.Fatalf("after 20 s there are %d ends, want 4", n)
		}
		time.Sleep(20 * time.Second)
		if len(pr.c.Flows()) != 1 || len(pr.e.Flows()) != 1 || once.end() == nil || often.end() != nil {
			t.Errorf("after 40 s: %v and %v", pr.c.Flows(), pr.e.Flows())
		}
		time.Sleep(280 * time.Second)
		if len(pr.c.Flows())+len(pr.e.Flows()) != 0 || often.end() == nil {
			t.Errorf("after 5 min: %v and %v", pr.c.Flows(), pr.e.Flows())
		}
		pr.c.mu.Lock()
		defer pr.c.mu.Unlock()
		if len(pr.c.links) != 0 {
			t.Error("the link stays without flows")
		}
	})
}

func TestARefusalNamesItsReason(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		pr.mu.Lock()
		pr.allowed = func(service string) bool { return service != "" && service != "secret" }
		pr.mu.Unlock()
		for service, want := range map[string]Code{"secret": Denied, "refused": Refused} {
			f, back := pr.dial(service)
			f.Send([]byte("x"))
			time.Sleep(time.Second)
			var refused *RefusedError
			if !errors.As(back.end(), &refused) || refused.Code != want || refused.Service != service {
				t.Errorf("%s ended with %v, want %v", service, back.end(), want)
			}
		}
		if pr.offers() != 1 {
			t.Errorf("%d flows were offered: the denied one must not be", pr.offers())
		}
	})
}

func TestCutEndsWhatMatchesAndNothingElse(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		f, gone := pr.dial("gone")
		g, stays := pr.dial("stays")
		f.Send([]byte("x"))
		g.Send([]byte("x"))
		time.Sleep(time.Second)
		pr.e.Cut(func(p peer.ID, service, role string) bool {
			return p == "c" && service == "gone" && role == "exit"
		}, errors.New("revoked"))
		time.Sleep(100 * time.Millisecond)
		var refused *RefusedError
		if !errors.As(gone.end(), &refused) || refused.Code != Denied || stays.end() != nil {
			t.Errorf("ended with %v and %v", gone.end(), stays.end())
		}
		g.Send([]byte("y"))
		f.Send([]byte("nothing"))
		time.Sleep(time.Second)
		if stays.count() != 2 || gone.count() != 1 {
			t.Errorf("%d and %d came", stays.count(), gone.count())
		}
	})
}

func TestAPeerThatMayUseNothingIsTold(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		pr.mu.Lock()
		pr.expelled = true
		pr.mu.Unlock()
		f, back := pr.dial("echo")
		f.Send([]byte("x"))
		time.Sleep(10 * time.Second)
		var refused *RefusedError
		if !errors.As(back.end(), &refused) || refused.Code != Denied || pr.offers() != 0 {
			t.Errorf("ended with %v, %d offered", back.end(), pr.offers())
		}
	})
}

// TestOnASlowPathTheYoungGoFirst, by the stream because there is nothing else or because they do not fit a packet.
func TestOnASlowPathTheYoungGoFirst(t *testing.T) {
	for size, packets := range map[int]bool{1000: false, packetRoom + 100: true} {
		t.Run(fmt.Sprintf("packets=%v", packets), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &path{delay: 20 * time.Millisecond, rate: 100 << 10, buffer: 1 << 20} // ten seconds' worth of buffer
				pr := newPair(t, packets, p)
				f, back := pr.dial("echo")
				f.Send(nil)
				time.Sleep(time.Second) // opened: what follows goes as packets, if it can
				began := time.Now()
				for range 2000 { // ten times what the path takes
					f.Send(binary.BigEndian.AppendUint64(make([]byte, size), uint64(time.Since(began))))
					time.Sleep(time.Millisecond)
				}
				time.Sleep(3 * time.Second)
				worst := time.Duration(0)
				got, at := back.all()
				for i, b := range got[1:] {
					sent := began.Add(time.Duration(binary.BigEndian.Uint64(b[size:])))
					worst = max(worst, at[1+i].Sub(sent))
				}
				// Each way: 200 ms in the queue, as much and a batch in the buffers.
				if worst > time.Second || back.count() < 100 || f.Info().Dropped < 1000 {
					t.Errorf("the oldest that came was %v old; %d came, %d dropped", worst, back.count(), f.Info().Dropped)
				}
				t.Logf("%d of 2000 came, the oldest %v old", back.count(), worst)
				pr.stop()
				time.Sleep(2 * time.Second)
			})
		})
	}
}

func TestMoreThanThePathTakesKeepsNeitherSignsOfLifeNorOtherProgramsBack(t *testing.T) {
	for _, floods := range []string{roleEntry, roleExit} {
		t.Run(floods, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pr := newPair(t, true, &path{delay: 20 * time.Millisecond, packet: 10 * time.Millisecond})
				flood, _ := pr.dial("silent")
				flood.Send(nil)
				time.Sleep(time.Second) // opened: what follows goes as packets
				if floods == roleExit {
					flood = pr.e.halves()[0].all()[0]
				}
				pump := func(span time.Duration) { // ten times what the path takes, and no answer
					for range span / time.Millisecond {
						flood.Send(make([]byte, 1000))
						time.Sleep(time.Millisecond)
					}
				}
				pump(5 * time.Second)
				other, back := pr.question()
				asked := time.Now()
				pump(300 * time.Millisecond)
				if !other.opened.Load() {
					t.Error("the exit's word that it knows a flow has not come in 300 ms")
				}
				pump(5 * time.Second)
				if _, at := back.all(); len(at) != 1 || at[0].Sub(asked) > 300*time.Millisecond {
					t.Errorf("another program asked at %v, and the answer came at %v", asked, at)
				}
				if pr.opened != 1 {
					t.Errorf("%d carriers were opened: the one that answers was taken for silent", pr.opened)
				}
				pr.stop()
				time.Sleep(2 * time.Second)
			})
		})
	}
}

func TestTooManyFlowsCostTheOneThatIsIdleLongest(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		pr.c.Hold("e")
		time.Sleep(time.Second)
		boxes := make([]*box, maxFlows+10)
		for i := range boxes {
			boxes[i] = &box{}
			f, err := pr.c.Dial("e", "echo", boxes[i])
			if err != nil {
				t.Fatal(err)
			}
			f.Send([]byte("x"))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if len(pr.c.Flows()) != maxFlows || len(pr.e.Flows()) != maxFlows {
			t.Errorf("%d and %d flows", len(pr.c.Flows()), len(pr.e.Flows()))
		}
		for i, b := range boxes {
			if (b.end() != nil) != (i < 10) {
				t.Fatalf("flow %d ended with %v", i, b.end())
			}
		}
	})
}

func TestANewBootEndsTheFlowsOfTheLast(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, _ *path) {
		f, _ := pr.dial("echo")
		f.Send([]byte("x"))
		time.Sleep(time.Second)
		s := pr.attach(pr.c.boot + 1)
		time.Sleep(time.Second)
		if n := len(pr.e.Flows()); n != 0 {
			t.Errorf("%d flows of the old boot stay", n)
		}
		s.Reset()
	})
}

// attach opens a stream to the exit as C of that boot does, with frames behind the hello.
func (pr *pair) attach(boot uint64, frames ...frame) Stream {
	pr.t.Helper()
	s, err := pr.open(pr.t.Context(), "e", nil)
	if err != nil {
		pr.t.Fatal(err)
	}
	b := hello{boot: boot}.append(nil)
	for _, f := range frames {
		b = f.append(b)
	}
	s.Write(b)
	return s
}

func TestACarrierThatHasEndedIsNotSentBy(t *testing.T) {
	e := New(Config{})
	h := newHalf(e, "e", roleEntry, 1)
	near, far := net.Pipe()
	defer far.Close()
	c := newCarrier(h, pipe{near}, nil, nil)
	c.run(func(*bufio.Reader) error { return errCut })
	h.use(c) // its stream failed before whoever opened it came to this
	if h.current() != nil || len(h.carriers) != 0 {
		t.Errorf("it is sent by: %v; carriers: %d", h.current() != nil, len(h.carriers))
	}
}

type pipe struct{ net.Conn }

func (p pipe) Reset() error { return p.Close() }

func TestACarrierThatComesAsTheLastOneEndsHasFlowsWithinReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPair(t, false, &path{})
		last := make(chan Stream, 1)
		pr.e.cfg.Packets = func(Stream) Packets { // the half is found, the carrier not yet in use
			select {
			case s := <-last:
				s.Reset()
				time.Sleep(time.Second)
			default:
			}
			return nil
		}
		s := pr.attach(1)
		time.Sleep(time.Second)
		last <- s
		pr.attach(1, frame{typ: frameOpen, number: 1, service: "echo", data: []byte("x")})
		time.Sleep(2 * time.Second)
		if n := len(pr.e.Flows()); n != 1 {
			t.Errorf("%d flows are listed, want 1", n)
		}
		pr.e.Cut(func(peer.ID, string, string) bool { return true }, errors.New("revoked"))
		time.Sleep(time.Second)
		if n := pr.e.exits.Load(); n != 0 {
			t.Errorf("%d flows live after all were cut", n)
		}
		pr.e.mu.Lock()
		if len(pr.e.users) != 0 {
			t.Error("the half stays without carriers")
		}
		pr.e.mu.Unlock()
		pr.stop()
		time.Sleep(2 * time.Second)
	})
}

func TestNothingOfTheLastBootBeginsAfterTheNewOne(t *testing.T) {
	open := frame{typ: frameOpen, number: 1, service: "echo", data: []byte("x")}
	for _, late := range []string{"carrier", "flow"} {
		t.Run(late, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pr := newPair(t, false, &path{})
				var booted atomic.Bool
				reboot := func() {
					if booted.CompareAndSwap(false, true) {
						pr.attach(2)
						time.Sleep(time.Second)
					}
				}
				if late == "carrier" {
					pr.e.cfg.Packets = func(Stream) Packets { reboot(); return nil }
				} else {
					pr.mu.Lock()
					pr.allowed = func(string) bool { reboot(); return true }
					pr.mu.Unlock()
				}
				s := pr.attach(1, open)
				time.Sleep(2 * time.Second)
				if pr.offers() != 0 || len(pr.e.Flows()) != 0 || pr.e.exits.Load() != 0 {
					t.Errorf("%d flows were offered, %d are listed, %d count", pr.offers(), len(pr.e.Flows()), pr.e.exits.Load())
				}
				if _, err := s.Write([]byte{0}); err == nil {
					t.Error("the carrier lives")
				}
				pr.stop()
				time.Sleep(2 * time.Second)
			})
		})
	}
}

func TestAFlowThatTwoCarriersOpenAtOnceIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPair(t, false, &path{})
		var both sync.WaitGroup
		both.Add(2)
		pr.mu.Lock()
		pr.allowed = func(string) bool { both.Done(); both.Wait(); return true } // both have found that there is no such flow
		pr.mu.Unlock()
		for range 2 {
			pr.attach(1, frame{typ: frameOpen, number: 1, service: "echo", data: []byte("x")})
		}
		time.Sleep(time.Second)
		if pr.offers() != 1 || len(pr.e.Flows()) != 1 || pr.e.exits.Load() != 1 {
			t.Errorf("%d flows were offered, %d are listed, %d count", pr.offers(), len(pr.e.Flows()), pr.e.exits.Load())
		}
		if all := pr.e.Totals(); len(all) != 1 || all[0].Opened != 1 || all[0].Received != 2 || all[0].Sent != 2 {
			t.Errorf("of one flow and two datagrams the totals are %+v", all)
		}
		pr.e.Cut(func(peer.ID, string, string) bool { return true }, errors.New("revoked"))
		if n := pr.e.exits.Load(); n != 0 {
			t.Errorf("%d flows count after all were cut", n)
		}
		pr.stop()
		time.Sleep(2 * time.Second)
	})
}

func TestAPeerThatBreaksTheProtocolLosesItsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPair(t, false, &path{})
		for name, bytes := range map[string][]byte{
			"magic":           []byte("FWU9aaaaaaaaaaaaaaaa"),
			"unknown frame":   append(hello{boot: 1}.append(nil), 9, 1),
			"too long a name": append(hello{boot: 1}.append(nil), byte(frameOpen), 1, 0x80, 2),
			"no name":         append(hello{boot: 1}.append(nil), byte(frameOpen), 1, 0, 0),
			"too large":       binary.AppendUvarint(append(hello{boot: 1}.append(nil), byte(frameData), 1), MaxSize+1),
			"long uvarint":    append(hello{boot: 1}.append(nil), byte(framePing), 0x80, 0),
			"opened from C":   append(hello{boot: 1}.append(nil), byte(frameOpened), 1),
			"silence":         nil,
		} {
			s, err := pr.open(t.Context(), "e", nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Write(bytes)
			time.Sleep(10 * time.Second)
			if _, err := s.Write([]byte("x")); err == nil {
				t.Errorf("%s: the stream lives", name)
			}
		}
		// What is only unknown is answered.
		s, _ := pr.open(t.Context(), "e", nil)
		s.Write(frame{typ: frameData, number: 77, data: []byte("x")}.append(hello{boot: 1}.append(nil)))
		want := frame{typ: frameClose, number: 77, code: Unknown}.append(nil)
		got := make([]byte, 0, 200) // enough for many PINGs
		for !bytes.Contains(got, want) {
			n, err := s.Read(got[len(got):cap(got)]) // the answers may come one by one
			if got = got[:len(got)+n]; err != nil || n == 0 {
				t.Fatalf("got %v, %v, want %v in it", got, err, want)
			}
		}
		s.Reset()
		pr.stop()
		time.Sleep(2 * time.Second)
	})
}

func TestWhatIsNotAcceptedYetIsBoundedInBytesOfAPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr := newPair(t, false, &path{delay: time.Millisecond})
		const flows = 10
		for range flows {
			f, _ := pr.dial("waits")
			for range maxPending {
				f.Send(make([]byte, MaxSize))
				time.Sleep(10 * time.Millisecond)
			}
		}
		h := pr.e.users["c"]
		held := func() (n int) {
			for _, f := range h.all() {
				h.mu.Lock()
				for _, b := range f.pending {
					n += len(b)
				}
				h.mu.Unlock()
			}
			return n
		}
		if n := held(); n < MaxSize || n > max(queueBytes, MaxSize) {
			t.Errorf("%d flows keep %d bytes, want %d", flows, n, queueBytes)
		}
		// What is accepted or refused makes room.
		pr.mu.Lock()
		waiting := pr.waiting
		pr.mu.Unlock()
		if len(waiting) != flows {
			t.Fatalf("%d flows wait, want %d", len(waiting), flows)
		}
		for _, in := range waiting {
			in.Refuse(Overload)
		}
		if n := held(); n != 0 || h.parked != 0 {
			t.Errorf("%d bytes are kept, %d counted, of no flow", n, h.parked)
		}
		pr.stop()
		time.Sleep(2 * time.Second)
	})
}

// TestNothingOfAFlowGoesOutAfterItsEnd: the exit would take it for the beginning of another, which nobody ends.
func TestNothingOfAFlowGoesOutAfterItsEnd(t *testing.T) {
	each(t, func(t *testing.T, pr *pair, p *path) {
		ended, _ := pr.dial("silent")
		other, back := pr.dial("echo")
		pr.lose(p) // what is sent waits for another path
		synctest.Wait()
		ended.Send([]byte("too late"))
		other.Send([]byte("x"))
		ended.Close(Ended)
		pr.add(&path{delay: 20 * time.Millisecond})
		pr.c.Renew("e")
		time.Sleep(time.Second)
		if back.count() != 1 {
			t.Errorf("%d datagrams of another flow came back, want 1", back.count())
		}
		if n := pr.offers(); n != 1 {
			t.Errorf("%d flows were offered, want the one that goes on", n)
		}
	})
}
