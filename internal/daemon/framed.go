package daemon

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A framed connection is the session of `connect -` on the control socket. A
// unix socket ends alike whether its other side was done or died, so bytes
// travel in frames: their number in 4 bytes, big-endian, then they themselves;
// 0 ends the direction. What ends without it has failed; why, if that is to be told,
// is in a frame of its own, failureMark and then a Failure as in the events.
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
	torn  bool // a frame went out in part; under write
}

// maxFrame bounds what one frame may announce. Nothing is allocated by it.
const maxFrame = 1 << 20

// failureMark is no length: a frame that holds a Failure, of at most maxFailure bytes,
// follows it.
const (
	failureMark = 1<<32 - 1
	maxFailure  = 64 << 10
)

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
		case n == failureMark:
			return 0, f.readFailure()
		case n > maxFrame:
			return 0, errFrame
		}
		f.left = int(n)
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, broken(err)
}

func (f *framed) readFailure() error {
	var head [4]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return broken(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFailure {
		return errFrame
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(f.r, text); err != nil {
		return broken(err)
	}
	why := new(Failure)
	if json.Unmarshal(text, why) != nil {
		return errFrame
	}
	return why
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
		f.torn = f.torn || err != nil
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

// fail tells the other side why and ends both directions.
func (f *framed) fail(why *Failure) {
	defer f.Conn.Close()
	f.write.Lock()
	defer f.write.Unlock()
	text, err := json.Marshal(why)
	if err != nil || f.torn || len(text) > maxFailure {
		return
	}
	b := binary.BigEndian.AppendUint32(nil, failureMark)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	f.Conn.SetWriteDeadline(time.Now().Add(failTime))
	f.Conn.Write(append(b, text...))
}

// failTime bounds how long one who does not read can hold up the telling: 1 s.
const failTime = time.Second

// Reset ends both directions as failed.
func (f *framed) Reset() error { return f.Conn.Close() }
