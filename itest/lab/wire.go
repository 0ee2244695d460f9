//go:build linux

package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Shape is what a wire does to the packets of one direction. The zero Shape is a perfect wire.
type Shape struct {
	Delay   time.Duration // one way; timers tick at 1 ms, so it is exact to about that
	Jitter  time.Duration // added to Delay, uniform in [0, Jitter)
	Loss    float64       // part of the packets that is lost, 0 to 1
	Rate    int           // bits per second; 0: no limit
	Queue   int           // bytes that may wait for a limited Rate, the rest is dropped; 0: 100 ms worth, at least 32 KiB
	Reorder bool          // Jitter may make a packet overtake another
	Bunched bool          // TCP crosses in bunches of up to 64 KiB, as between cards that segment; each counts as one packet
}

func (s Shape) queue() int {
	if s.Queue > 0 {
		return s.Queue
	}
	return max(32<<10, s.Rate/8/10)
}

// wire carries packets between two TUN devices: up from the customer's end, down to it. It stands in for netem,
// which not every kernel has.
type wire struct {
	upEnd, downEnd *os.File // TUN devices at the provider's and at the customer's end
	up, down       lane
	pumps          sync.WaitGroup
}

func newWire(provider, customer *node, providerIf, customerIf string, up, down Shape, seed uint64) (*wire, error) {
	bunched := up.Bunched || down.Bunched
	a, err := openTUN(provider, providerIf, bunched)
	if err != nil {
		return nil, err
	}
	b, err := openTUN(customer, customerIf, bunched)
	if err != nil {
		a.Close()
		return nil, err
	}
	w := &wire{upEnd: a, downEnd: b}
	if err := errors.Join(provider.queue(providerIf), customer.queue(customerIf)); err != nil {
		w.close()
		return nil, err
	}
	w.up.init(up, seed)
	w.down.init(down, seed+1)
	for _, pump := range []func(){
		func() { w.up.read(b) }, func() { w.up.write(a) },
		func() { w.down.read(a) }, func() { w.down.write(b) },
	} {
		w.pumps.Go(pump) // all four end when close has closed both devices
	}
	return w, nil
}

// queue makes a TUN device hold as many packets as a wire does before read takes them: the usual 500 are lost in a
// burst while this process waits for a CPU, and only Shape shall lose packets.
func (n *node) queue(link string) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return err
	}
	return n.nl.LinkSetTxQLen(l, inFlight)
}

func (w *wire) close() {
	w.upEnd.Close()
	w.downEnd.Close()
	w.pumps.Wait()
}

// carrier says whether the customer's end sees a cable at all.
func (w *wire) carrier(on bool) error {
	raw, err := w.downEnd.SyscallConn()
	if err != nil {
		return err
	}
	value := 0
	if on {
		value = 1
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, value) })
	if err == nil {
		err = failed
	}
	return err
}

// lane is one direction of a wire.
type lane struct {
	shape atomic.Pointer[Shape]
	queue chan parcel // in order of due, but for Reorder
	rng   *rand.Rand  // used by read alone
	free  time.Time   // when the line has sent all that it took so far; used by read alone
	last  time.Time   // due of the newest parcel; used by read alone
}

// parcel is a packet on its way.
type parcel struct {
	due    time.Time
	packet []byte
}

// inFlight bounds the packets on a wire: 100 ms at 1 Gbit/s in packets of 1500 bytes, and some. packets is more where a
// Shape holds more.
const inFlight = 16384

func (s Shape) packets() int {
	return max(inFlight, (int(float64(s.Rate)/8*(s.Delay+s.Jitter).Seconds())+s.queue())/1000)
}

func (l *lane) init(s Shape, seed uint64) {
	l.shape.Store(&s)
	l.queue = make(chan parcel, s.packets())
	l.rng = rand.New(rand.NewPCG(seed, 0))
}

// read takes packets from a device, drops some, and says of each other when it is due at the far end.
func (l *lane) read(from *os.File) {
	defer close(l.queue)
	buf := make([]byte, virtioHeader+64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		due, ok := l.schedule(n, *l.shape.Load(), time.Now())
		if !ok {
			continue
		}
		select {
		case l.queue <- parcel{due, append([]byte(nil), buf[:n]...)}:
		default: // full: lost
		}
	}
}

// schedule decides the fate of a packet of n bytes that arrives now.
func (l *lane) schedule(n int, s Shape, now time.Time) (due time.Time, ok bool) {
	if s.Loss > 0 && l.rng.Float64() < s.Loss {
		return due, false
	}
	sent := now
	if s.Rate > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		waiting := int(l.free.Sub(now).Seconds() * float64(s.Rate) / 8)
		if waiting+n > s.queue() {
			return due, false
		}
		l.free = l.free.Add(time.Duration(float64(n) * 8 / float64(s.Rate) * float64(time.Second)))
		sent = l.free
	}
	due = sent.Add(s.Delay)
	if s.Jitter > 0 {
		due = due.Add(time.Duration(l.rng.Int64N(int64(s.Jitter))))
	}
	if !s.Reorder && due.Before(l.last) {
		due = l.last
	}
	l.last = due
	return due, true
}

// write delivers parcels when they are due. With Reorder the early ones are carried by timers of their own.
func (l *lane) write(to *os.File) {
	for p := range l.queue {
		wait := time.Until(p.due)
		if l.shape.Load().Reorder && wait > 0 {
			time.AfterFunc(wait, func() { _, _ = to.Write(p.packet) }) // a closed device refuses it
			continue
		}
		if wait > 0 {
			time.Sleep(wait)
		}
		_, _ = to.Write(p.packet) // refused while the device is down: lost, as on a real wire
	}
}

// virtioHeader is the bytes before each packet of a device for bunches; they say how the far end cuts it
// (struct virtio_net_hdr), and cross with it.
const virtioHeader = 10

// openTUN makes a TUN device in the node's namespace, which is that of the opening thread.
func openTUN(n *node, name string, bunched bool) (*os.File, error) {
	var file *os.File
	err := n.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
			if bunched {
				flags |= unix.IFF_VNET_HDR
			}
			req.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err == nil && bunched {
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("tun %s on %s: %w", name, n.name, err)
		}
		file = os.NewFile(uintptr(fd), name) // after TUNSETIFF: before it the device cannot be polled
		return nil
	})
	return file, err
}
