package session

import (
	"io"
	"net"
	"time"

	yamux "github.com/libp2p/go-yamux/v5"
)

const (
	maxSessions = 16384    // a lane's incoming streams
	backlog     = 4096     // streams not yet accepted
	firstWindow = 2 << 20  // the same at first: 100 Mbit/s at 150 ms; the default 256 KiB keeps BBR from ever learning the rate
	maxWindow   = 16 << 20 // bytes of one stream on their way; like maxRing, 1.3 Gbit/s at 100 ms
	muxMessage  = 60 << 10 // bytes; a message with all heads fits one frame of a libp2p muxer (64 KiB) or Noise (65 519)
	muxHeader   = 12       // bytes before a message's data; yamux hands each message over in one Write
	never       = 10 * 365 * 24 * time.Hour
)

// newMux starts the yamux session inside a lane.
func newMux(l *lane, r role) *yamux.Session {
	c := &yamux.Config{
		AcceptBacklog:           backlog,
		PingBacklog:             32,
		EnableKeepAlive:         false, // the lane watches its path; yamux would end what is merely parked
		MeasureRTTInterval:      5 * time.Minute,
		ConnectionWriteTimeout:  never,
		MaxIncomingStreams:      maxSessions,
		InitialStreamWindowSize: firstWindow,
		MaxStreamWindowSize:     maxWindow,
		LogOutput:               io.Discard,
		ReadBufSize:             0, // the lane has one
		MaxMessageSize:          muxMessage,
	}
	if r == entry {
		c.MaxIncomingStreams = 0
	}
	manager := func() (yamux.MemoryManager, error) { return &windows{mem: &l.link.e.mem}, nil }
	start := yamux.Server
	if r == entry {
		start = yamux.Client
	}
	mux, err := start(net.Conn(l), c, manager)
	if err != nil {
		panic("session: the yamux configuration is a constant: " + err.Error())
	}
	return mux
}

// windows lets each stream start (a refusal would end the whole lane) and refuses to grow windows once
// all streams together could hold more than the endpoint's budget.
type windows struct {
	mem   *memory
	grown int
}

// growPriority is yamux's priority for what it can do without.
const growPriority = 128

func (w *windows) ReserveMemory(n int, prio uint8) error {
	if prio > growPriority {
		return nil
	}
	if !w.mem.reserveWindow(int64(n)) {
		return errNoWindow
	}
	w.grown += n
	return nil
}

func (w *windows) ReleaseMemory(int) {}

func (w *windows) Done() {
	w.mem.reserveWindow(-int64(w.grown))
	w.grown = 0
}
