package session

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// race has sessions write pieces of a size each, for a while, on a line of 16 KiB a millisecond, and says how much each has
// written in two seconds.
func race(t *testing.T, sizes ...int) (moved []int64) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.open = func(context.Context, int, Want) (*end, error) {
			a, b := streamPair(16 << 10)
			c := l.pair()
			l.done.Go(func() { io.Copy(b, onlyReader{c}) })
			l.done.Go(func() {
				for buf := make([]byte, 16<<10); ; {
					n, err := b.Read(buf)
					if err != nil {
						c.Reset()
						return
					}
					time.Sleep(time.Duration(n) * time.Millisecond / time.Duration(len(buf)))
					c.Write(buf[:n])
				}
			})
			return a, nil
		}
		var near []*Conn
		for range sizes {
			c, e := l.session()
			near = append(near, c)
			go io.Copy(io.Discard, e)
		}
		for i, c := range near {
			go func() {
				for buf := make([]byte, sizes[i]); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(time.Second) // who came first had the lane for himself
		for _, c := range near {
			moved = append(moved, -c.sent.Load())
		}
		time.Sleep(2 * time.Second)
		for i, c := range near {
			if c.lane != near[0].lane {
				t.Error("not on one lane")
			}
			moved[i] += c.sent.Load()
			defer c.Reset()
		}
	})
	return moved
}

func TestBulkWritersShareALaneEvenly(t *testing.T) {
	moved := race(t, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20)
	least, most := moved[0], moved[0]
	for _, n := range moved {
		least, most = min(least, n), max(most, n)
	}
	if most-least > 2*muxPayload || least < 1<<20 {
		t.Errorf("written: %d", moved)
	}
}

// Small pieces go ahead, but who writes nothing else does not keep the lane for himself.
func TestSmallPiecesWithoutEndStarveNobody(t *testing.T) {
	moved := race(t, smallPiece, smallPiece, 1<<20)
	if small, large := moved[0], moved[2]; large < small/20 || small < large/20 {
		t.Errorf("written: %d", moved)
	}
}

// A shell that has waited for credit with a large piece does not stand in the way of those with small ones.
func TestWhoWantsMoreThanBeforeLeavesTheShortLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		grown, _ := l.session()
		shell, _ := l.session()
		bulk, _ := l.session()
		ln := grown.lane
		synctest.Wait() // the credit that comes with the exit's answer is there
		ln.mu.Lock()
		grown.credit = 100 // so far
		ln.mu.Unlock()
		bulk.lane.mu.Lock()
		bulk.credit = 1 << 30
		bulk.lane.mu.Unlock()
		p := l.last().out
		p.hold(true)
		go io.Copy(onlyWriter{bulk}, &numbers{})
		synctest.Wait()
		go fillSmall(shell)
		synctest.Wait()                       // nothing fits any more, not even small pieces
		go grown.Write(make([]byte, 100<<10)) // what its credit allows is small
		synctest.Wait()
		ln.mu.Lock()
		grown.credit = 1 << 20
		grown.canWrite.Broadcast()
		ln.mu.Unlock()
		synctest.Wait()
		ln.mu.Lock()
		for size, line := range ln.lines {
			for _, c := range line {
				if c.parked[size] == 0 {
					t.Errorf("stands in line %d and waits elsewhere", size)
				}
			}
		}
		ln.mu.Unlock()
		p.hold(false)
		for _, c := range []*Conn{grown, shell, bulk} {
			c.Reset()
		}
	})
}

func fillSmall(c *Conn) {
	for {
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			return
		}
	}
}

// An entry has no more sessions unanswered than an exit must take; who dials beyond waits.
func TestDialsBeyondTheBacklogWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		wires := l.exitWires()
		var conns []*Conn
		for range backlog {
			c, err := l.c.Dial(t.Context(), peerE, "svc")
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		w := <-wires
		go w.drain()
		dial := func(ctx context.Context) chan error {
			done := make(chan error, 1)
			go func() {
				_, err := l.c.Dial(ctx, peerE, "svc")
				done <- err
			}()
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatal("a dial did not wait:", err)
			default:
			}
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := dial(ctx)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error("called off:", err)
		}
		done = dial(t.Context())
		w.say(message{muxWindow, muxACK, 1, 0})
		if err := <-done; err != nil {
			t.Error("after an answer:", err)
		}
		done = dial(t.Context())
		w.say(message{muxWindow, muxRST, 3, 0})
		if err := <-done; err != nil {
			t.Error("after a reset by them:", err)
		}
		done = dial(t.Context())
		conns[2].Reset()
		if err := <-done; err != nil {
			t.Error("after a reset by us:", err)
		}
		done = dial(t.Context())
		old := lane0(t, l.c)
		old.link.fail(errCut, endCut)
		if err := <-done; err != nil || lane0(t, l.c) == old {
			t.Error("after the link's end, on a new one:", err)
		}
		synctest.Wait()
		if s := leftovers(old); s != "" {
			t.Error("left:", s)
		}
	})
}

// A burst of dials of our own is never more than our exit takes, though Accept is late.
func TestABurstOfDialsWaitsForAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		const n = backlog + 1000
		var all sync.WaitGroup
		var failed atomic.Int32
		for range n {
			all.Go(func() {
				c, err := l.c.Dial(t.Context(), peerE, "svc")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					failed.Add(1)
				}
				c.Close()
			})
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		go func() { all.Wait(); cancel() }()
		for {
			in, err := l.e.Accept(ctx)
			if err != nil {
				break
			}
			if c, err := in.Accept(); err == nil {
				c.Close()
			}
		}
		all.Wait()
		if failed := failed.Load(); failed > 0 {
			t.Errorf("%d of %d sessions failed", failed, n)
		}
	})
}

// A dial that waits for room ends with the link, also where the path is away.
func TestADialThatWaitsForRoomEndsWithTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, _ := l.session()
		time.Sleep(2 * ackDelay) // until it has its credit
		silence(l.last())        // nobody has noticed yet
		fill([]*Conn{c})
		done := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 2 {
			go func() { _, err := l.c.Dial(ctx, peerE, "svc"); done <- err }()
		}
		synctest.Wait()
		if n := len(c.lane.lines[first]); n != 2 {
			t.Fatalf("%d dials wait for room, want 2", n)
		}
		l.lose(peerE)
		l.last().Reset()
		synctest.Wait()
		k := c.lane.link
		k.fail(errCut, endCut)
		synctest.Wait()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.busy != 0 { // the dials begin a new link, for which there is no path
			t.Errorf("%d dials wait at a link that has ended", k.busy)
		}
	})
}

// Stream numbers begin again, and those in use are left out.
func TestStreamNumbersBeginAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		long, far := l.session() // 1
		second, _ := l.session() // 3
		second.Reset()
		long.lane.mu.Lock()
		long.lane.nextStream = 1<<32 - 3
		long.lane.mu.Unlock()
		for _, want := range []uint32{1<<32 - 3, 1<<32 - 1, 3, 5} {
			c, e := l.session()
			if c.stream != want || e.stream != want {
				t.Errorf("stream %d, %d at the exit, want %d", c.stream, e.stream, want)
			}
			if err := both(c, e, 1000, 1000); err != nil {
				t.Error(err)
			}
		}
		if err := both(long, far, 1000, 1000); err != nil {
			t.Error(err)
		}
	})
}

// A lane that moves much measures how long its own bytes wait; the link's other lanes say how far the peer is.
func TestTheShortestRoundTripIsTheLinks(t *testing.T) {
	k := &link{}
	if k.rtt() != 0 {
		t.Errorf("%v, but none was measured", k.rtt())
	}
	a := attachment{l: &lane{link: k, index: 1}}
	a.measured(80 * time.Millisecond)
	b := attachment{l: &lane{link: k, index: 3}}
	b.measured(3 * time.Millisecond)
	b.measured(5 * time.Millisecond)
	if k.rtt() != 3*time.Millisecond {
		t.Errorf("%v, want 3ms", k.rtt())
	}
}

// Bytes that waited while the reader had no processor are read in a burst, which says nothing of the line.
func TestABurstDoesNotWidenAWindow(t *testing.T) {
	k := &link{}
	k.rtts[0].Store(int64(time.Millisecond))
	read := func(c *Conn, bytes int64, every time.Duration) {
		for left := bytes; left > 0; left -= c.window / creditParts {
			time.Sleep(every)
			c.spentLocked(int(c.window / creditParts))
		}
	}
	synctest.Test(t, func(t *testing.T) {
		session := func() *Conn {
			c := &Conn{lane: &lane{link: k}, window: firstWindow, rounded: time.Now()}
			c.inbox.mem = &memory{budget: 1 << 30}
			return c
		}
		c := session()
		for range 10 { // 20 MiB at once, each second
			read(c, 20<<20, 0)
			time.Sleep(time.Second)
		}
		if c.window != firstWindow {
			t.Errorf("window %d after bursts", c.window)
		}
		c = session()
		read(c, 100<<20, 500*time.Microsecond) // an eighth in half a round trip: the window is half of what the line holds
		if c.window == firstWindow {
			t.Error("no wider, though the line holds more")
		}
	})
}
