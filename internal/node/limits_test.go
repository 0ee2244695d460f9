package node

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// slowPipe is a connection that takes delay each way and holds what is on its way.
func slowPipe(t *testing.T, delay time.Duration) (a, b net.Conn) {
	type piece struct {
		due  time.Time
		data []byte
	}
	carry := func(to, from net.Conn) {
		way := make(chan piece, 1<<16)
		go func() { // ends with the far end
			defer close(way)
			buf := make([]byte, 64<<10)
			for {
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				way <- piece{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}
			}
		}()
		go func() { // ends when the other has
			for p := range way {
				time.Sleep(time.Until(p.due))
				to.Write(p.data) // refused once closed
			}
		}()
	}
	a, inA := net.Pipe()
	b, inB := net.Pipe()
	carry(inB, inA)
	carry(inA, inB)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// A sender may have a whole window on its way, however long the stream has been in use.
func TestStreamsKeepTheirCredit(t *testing.T) {
	for _, relay := range []bool{false, true} {
		here, there := slowPipe(t, 10*time.Millisecond)
		mux := newMuxer(relay)
		var sender, receiver network.MuxedConn
		dialled := make(chan error, 1)
		go func() { // ends with the handshake
			var err error
			sender, err = mux.NewConn(here, false, nil)
			dialled <- err
		}()
		var err error
		if receiver, err = mux.NewConn(there, true, nil); err != nil {
			t.Fatal(err)
		}
		if err := <-dialled; err != nil {
			t.Fatal(err)
		}
		out, err := sender.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		in, err := receiver.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		window := int64(mux.MaxStreamWindowSize)
		sent := make(chan int64, 1)
		go func() { // ends when nothing more is taken
			buf, n := make([]byte, 64<<10), int64(0)
			for {
				out.SetWriteDeadline(time.Now().Add(time.Second))
				m, err := out.Write(buf)
				if n += int64(m); err != nil {
					sent <- n
					return
				}
			}
		}()
		// The credit for the last part of a window is still to come.
		read, err := io.CopyN(io.Discard, in, 4*window+window/8)
		if err != nil {
			t.Fatal(err)
		}
		if onTheWay := <-sent - read; onTheWay < window*3/4 {
			t.Errorf("relay %v: %d KiB on the way, of a window of %d", relay, onTheWay>>10, window>>10)
		}
		sender.Close()
		receiver.Close()
	}
}
