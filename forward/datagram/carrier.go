package datagram

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// batch is how much goes to the stream at once; maxControl how many bytes of frames that are no datagrams may
	// wait, beyond which they are dropped: each of them would be asked for again.
	batch      = 64 << 10
	maxControl = 16 << 10

	// What may be on its way by the stream is bounded by a window, for what is written beyond what the path takes waits in buffers where it
	// cannot be dropped. PINGs, one for a quarter of the window and one each markEvery, tell how long it takes: less than
	// lowDelay above the shortest round trip, and the window grows by what has arrived (twofold each round trip); more than
	// queueAge, and it is halved, once a round trip.
	firstWindow = 32 << 10
	minWindow   = 8 << 10
	maxWindow   = 16 << 20 // 1 Gbit/s over 130 ms
	lowDelay    = queueAge / 2
	markEvery   = 20 * time.Millisecond

	// maxPacket: no QUIC datagram is larger; quic-go's search for the path's MTU ends at 1 452. How large one may be now, QUIC
	// tells by refusing, and is asked again when sizeFor has passed, for it goes on searching.
	maxPacket = 1500
	sizeFor   = 5 * time.Second

	retireAfter = time.Second // docs/udp.md
)

// A carrier is one stream, and the QUIC datagrams of its connection, as long as they live.
//
// Two goroutines are its own: run reads, write writes. What write needs to hurry for stands in the fields under mu.
type carrier struct {
	half     *half
	stream   Stream
	packets  Packets     // nil: not on this connection
	reads    atomic.Bool // the other side reads QUIC datagrams
	heard    atomic.Int64
	began    time.Time
	done     chan struct{} // closed by end
	once     sync.Once
	wake     chan struct{} // capacity 1
	welcomed chan struct{} // C: closed when E has said OK
	retired  bool          // under half.mu: only read from
	marked   time.Time     // of the writer: when the last PING went with data
	asked    time.Time     // of half.keep: when it last wanted a sign of life
	refused  int           // of the writer: QUIC takes no datagram of that size, since sizedAt
	sizedAt  time.Time

	mu      sync.Mutex
	queue   []byte // control frames
	pong    uint64 // the PING to answer; 0: none
	ping    uint64 // the last PING's number
	pings   []pinged
	rtt     time.Duration // the shortest; 0: not measured
	window  int64
	written int64 // bytes of data
	arrived int64 // of them, as the last PONG told
	marks   int64 // written at the last PING
	halved  int64 // written when the window was last halved
}

type pinged struct {
	n       uint64
	at      time.Time
	written int64
}

// newCarrier begins with a first message; a PING follows it at once, to measure the round trip.
func newCarrier(h *half, s Stream, packets Packets, first []byte) *carrier {
	c := &carrier{
		half: h, stream: s, packets: packets, queue: first, began: time.Now(), window: firstWindow,
		done: make(chan struct{}), wake: make(chan struct{}, 1), welcomed: make(chan struct{}),
	}
	c.hear(c.began)
	c.askAlive()
	return c
}

func (c *carrier) hear(now time.Time) { c.heard.Store(now.UnixNano()) }

func (c *carrier) lastHeard() time.Time { return time.Unix(0, c.heard.Load()) }

// unanswered: it was asked for a sign of life, and nothing has come since.
func (c *carrier) unanswered() bool { return !c.asked.IsZero() && !c.lastHeard().After(c.asked) }

// end resets the stream; run returns then.
func (c *carrier) end() {
	c.once.Do(func() {
		close(c.done)
		c.stream.Reset()
	})
}

func (c *carrier) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// run carries until the stream fails or end is called.
func (c *carrier) run(read func(*bufio.Reader) error) error {
	stop := c.half.e.listen(c)
	defer stop()
	defer context.AfterFunc(c.half.e.ctx, c.end)()
	var writing sync.WaitGroup
	defer writing.Wait()
	defer c.half.drop(c)
	defer c.end()
	writing.Go(c.write)
	return read(bufio.NewReaderSize(c.stream, batch))
}

// control queues a frame that is no datagram.
func (c *carrier) control(f frame) {
	c.mu.Lock()
	if len(c.queue) < maxControl {
		c.queue = f.append(c.queue)
	}
	c.mu.Unlock()
	signal(c.wake)
}

// askAlive sends a PING now.
func (c *carrier) askAlive() {
	c.mu.Lock()
	c.queue = c.pingLocked(time.Now(), c.queue)
	c.mu.Unlock()
	signal(c.wake)
}

func (c *carrier) pingLocked(now time.Time, b []byte) []byte {
	c.ping++
	c.marks = c.written
	c.pings = append(c.pings, pinged{c.ping, now, c.written})
	return frame{typ: framePing, number: c.ping}.append(b)
}

// answered takes a PONG: the round trip, and perhaps leave to write.
func (c *carrier) answered(n uint64) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	i := 0
	for ; i < len(c.pings) && c.pings[i].n <= n; i++ {
		if c.pings[i].n == n {
			c.tookLocked(now.Sub(c.pings[i].at), c.pings[i].written)
		}
	}
	c.pings = slices.Delete(c.pings, 0, i)
	signal(c.wake)
}

// tookLocked sets the window by how long the bytes up to written took.
func (c *carrier) tookLocked(took time.Duration, written int64) {
	if c.rtt == 0 || took < c.rtt {
		c.rtt = took
	}
	switch late := took - c.rtt; {
	case late < lowDelay && c.written-c.arrived > c.window/2: // else the window is no limit
		c.window = min(c.window+written-c.arrived, maxWindow)
	case late > queueAge && written > c.halved:
		c.window, c.halved = max(c.window/2, minWindow), c.written
	}
	c.arrived = written
}

// roundTrip is the shortest one measured.
func (c *carrier) roundTrip() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rtt
}

// clogged: the window is full.
func (c *carrier) clogged() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written-c.arrived >= c.window
}

// write sends what is queued until the carrier ends.
func (c *carrier) write() {
	defer c.end()
	buf := make([]byte, 0, 4<<10)
	packet := make([]byte, 0, maxPacket+maxHead)
	for {
		var sent bool
		buf, sent = c.fill(c.takeControl(buf[:0]), packet)
		if len(buf) > 0 {
			if _, err := c.stream.Write(buf); err != nil {
				return
			}
			if cap(buf) > batch+MaxSize {
				buf = nil // a burst of control frames; not to be kept
			}
			continue
		}
		if sent {
			continue
		}
		select {
		case <-c.wake:
		case <-c.done:
			return
		}
	}
}

func (c *carrier) takeControl(buf []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf = append(buf, c.queue...)
	c.queue = c.queue[:0]
	if c.pong > 0 {
		buf = frame{typ: framePong, number: c.pong}.append(buf)
		c.pong = 0
	}
	return buf
}

// fill appends what goes as frames, or sends one QUIC datagram if there is none before it: that may wait for the path, and as
// long as more is sent than the path takes there is always another, behind which no frame would have its turn.
func (c *carrier) fill(buf, packet []byte) (_ []byte, sent bool) {
	now := time.Now()
	if now.Sub(c.sizedAt) > sizeFor {
		c.refused, c.sizedAt = maxPacket+1, now
	}
	wants := func(it item) bool {
		if c.byPacket(it) {
			return len(buf) == 0
		}
		return !c.clogged()
	}
	for len(buf) < batch {
		it, ok := c.half.take(c, now, wants)
		if !ok {
			break
		}
		f := it.flow
		f.gone(len(it.data))
		if c.byPacket(it) {
			if c.sendPacket(packet, it) {
				return buf, true
			}
			c.refused = len(it.data) // what is as large waits for the window from now on
		}
		before := len(buf)
		if c.half.role == roleEntry && !f.opened.Load() {
			buf = frame{typ: frameOpen, number: f.number, service: f.service, data: it.data}.append(buf)
		} else {
			buf = frame{typ: frameData, number: f.number, data: it.data}.append(buf)
		}
		buf = c.mark(now, buf, len(buf)-before)
	}
	return buf, false
}

// sendPacket sends a QUIC datagram; false: it does not fit.
func (c *carrier) sendPacket(packet []byte, it item) bool {
	direction := toExit
	if c.half.role == roleExit {
		direction = toEntry
	}
	return c.packets.SendDatagram(appendPacket(packet[:0], direction, it.flow.number, it.data)) == nil
}

// mark counts bytes of data, and puts a PING behind them if one is due.
func (c *carrier) mark(now time.Time, buf []byte, data int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written += int64(data)
	if c.written-c.marks < c.window/4 && c.written-c.arrived < c.window && now.Sub(c.marked) < markEvery {
		return buf
	}
	c.marked = now
	return c.pingLocked(now, buf)
}

// byPacket: does a datagram go as a QUIC datagram, if it fits?
func (c *carrier) byPacket(it item) bool {
	return c.packets != nil && c.reads.Load() && len(it.data) < c.refused && (c.half.role == roleExit || it.flow.opened.Load())
}

// readFrames takes frames until the stream ends.
func (c *carrier) readFrames(r *bufio.Reader) error {
	room := make([]byte, MaxSize)
	for {
		f, err := readFrame(r, room)
		if err != nil {
			return err
		}
		c.hear(time.Now())
		if err := c.handle(f); err != nil {
			return err
		}
	}
}

func (c *carrier) handle(f frame) error {
	h := c.half
	switch f.typ {
	case frameData:
		h.received(c, f.number, f.data)
	case frameOpen:
		if h.role == roleEntry {
			return fmt.Errorf("%w: OPEN from the exit", errFrame)
		}
		h.offered(c, f)
	case frameOpened:
		if h.role == roleExit {
			return fmt.Errorf("%w: OPENED from the entry", errFrame)
		}
		if flow := h.flow(f.number); flow != nil {
			flow.opened.Store(true)
		}
	case frameClose:
		h.closed(f.number, f.code)
	case framePing:
		c.mu.Lock()
		c.pong = max(c.pong, f.number)
		c.mu.Unlock()
		signal(c.wake)
	case framePong:
		c.answered(f.number)
	}
	return nil
}

// readWelcome is C's first reading: E's answer.
func (c *carrier) readWelcome(r io.Reader) error {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	c.hear(time.Now())
	if b[0] != statusOK {
		return fmt.Errorf("%w: status %d", errRefused, b[0])
	}
	c.reads.Store(b[1]&flagPackets != 0)
	close(c.welcomed)
	return nil
}
