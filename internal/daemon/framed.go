package daemon

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// A framed connection is the session of `connect -` on the control socket. A
// unix socket ends alike whether its other side was done or died, so bytes
// travel in frames: their number in 4 bytes, big-endian, then they themselves;
// 0 ends the direction. What ends without it has failed.
//
// The socket is embedded as a plain net.Conn: its ReadFrom and WriteTo would go
// past the frames.
type framed struct {
	net.Conn
	r *bufio.Reader

	// Of the reading goroutine.
	left  int
	ended bool

	write sync.Mutex
	done  bool // our direction has ended; under write
}

// maxFrame bounds what one frame may announce. Nothing is allocated by it.
const maxFrame = 1 << 20

var errFrame = errors.New("the control connection carries no frames")

func (f *framed) Read(p []byte) (int, error) {
	if f.ended || len(p) == 0 {
		return 0, ended(f.ended)
	}
	if f.left == 0 {
		var head [4]byte
		if _, err := io.ReadFull(f.r, head[:]); err != nil {
			return 0, broken(err)
		}
		n := binary.BigEndian.Uint32(head[:])
		switch {
		case n == 0:
			f.ended = true
			return 0, io.EOF
		case n > maxFrame:
			return 0, errFrame
		}
		f.left = int(n)
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, broken(err)
}

func ended(yes bool) error {
	if yes {
		return io.EOF
	}
	return nil
}

// broken: the socket's end is not the session's.
func broken(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (f *framed) Write(p []byte) (n int, err error) {
	f.write.Lock()
	defer f.write.Unlock()
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), maxFrame)]
		p = p[len(part):]
		bufs := net.Buffers{binary.BigEndian.AppendUint32(nil, uint32(len(part))), part}
		_, err = bufs.WriteTo(f.Conn)
		if err == nil {
			n += len(part)
		}
	}
	return n, err
}

// CloseWrite ends our direction well.
func (f *framed) CloseWrite() error {
	f.write.Lock()
	defer f.write.Unlock()
	if f.done {
		return nil
	}
	f.done = true
	_, err := f.Conn.Write(make([]byte, 4))
	return err
}

// Reset ends both directions as failed.
func (f *framed) Reset() error { return f.Conn.Close() }
