package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// maxRequest bounds a request: the largest is an owner's backup, a roster of
// at most 1 MiB and its key.
const maxRequest = 4 << 20

// serveSocket answers the control API until ctx ends, and returns when every
// wish has.
func (d *Daemon) serveSocket(ctx context.Context, l net.Listener) error {
	var wishes sync.WaitGroup
	defer wishes.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			d.log.Warn("accept on the control socket", "err", err) // out of descriptors: others may end
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		wishes.Add(1)
		go func() {
			defer wishes.Done()
			defer conn.Close()
			d.serveWish(ctx, conn)
		}()
	}
}

// serveWish carries out one request and ends it when its client goes.
func (d *Daemon) serveWish(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &eventWriter{conn: conn}
	if w.write(Greeting{API: APIVersion, Version: Version(), PID: os.Getpid()}) != nil {
		return
	}
	r := bufio.NewReaderSize(conn, 4<<10)
	var req Request
	// Who connects and says nothing must not hold up the daemon's end.
	silent := context.AfterFunc(ctx, func() { conn.Close() })
	err := readLine(r, maxRequest, &req)
	silent()
	if err != nil {
		return // a client that only looked whether we live
	}
	defer d.wish()()

	stream := &wishStream{Conn: conn, r: r, gone: func() { cancel(errClientGone) }, watched: make(chan struct{})}
	go stream.watch() // ends with the connection, which serveSocket closes, or with take
	err = d.do(ctx, req, w.event, stream)
	switch {
	case stream.taken():
		return
	case err == nil, errors.Is(err, errWishEnded), errors.Is(context.Cause(ctx), errStopped):
		w.event(Event{Event: "done"})
	case ctx.Err() != nil: // the client has gone, or the daemon ends and the client starts it again
	default:
		w.event(Event{Event: "error", Failure: failureOf(err)})
	}
}

var (
	errClientGone = errors.New("the client went away")
	// errWishEnded: another terminal said unexpose or disconnect.
	errWishEnded = errors.New("ended by another command")
	// errStopped: fwd stop. The daemon is not wanted, so its clients are done too.
	errStopped = errors.New("stopped")
)

// wishStream is the client's connection as a command sees it.
type wishStream struct {
	net.Conn
	r       *bufio.Reader
	gone    func()
	watched chan struct{} // closed when watch has ended

	mu    sync.Mutex
	owned bool
}

// watch notes when the client goes: once it has asked it says nothing more, but for what take is for.
func (s *wishStream) watch() {
	defer close(s.watched)
	if _, err := s.r.Peek(1); err == nil || !s.taken() {
		s.gone()
	}
}

// take hands the connection to the command, for the session's bytes. The client must not know yet that it may send them.
func (s *wishStream) take() net.Conn {
	s.mu.Lock()
	s.owned = true
	s.mu.Unlock()
	s.SetReadDeadline(time.Unix(1, 0)) // long ago: ends watch
	<-s.watched
	s.SetReadDeadline(time.Time{})
	return s.Conn
}

func (s *wishStream) taken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owned
}

// eventWriter writes one line a time, from any goroutine.
type eventWriter struct {
	mu   sync.Mutex
	conn net.Conn
}

// eventTimeout: a client that reads nothing for so long is stuck or stopped
// (Ctrl-Z), and its events are dropped with it.
const eventTimeout = 30 * time.Second

func (w *eventWriter) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn.SetWriteDeadline(time.Now().Add(eventTimeout))
	defer w.conn.SetWriteDeadline(time.Time{}) // the session of `connect -` writes here as long as it likes
	if _, err = w.conn.Write(append(line, '\n')); err != nil {
		w.conn.Close() // half a line may be out: the client asks anew
	}
	return err
}

func (w *eventWriter) event(e Event) { w.write(e) }
