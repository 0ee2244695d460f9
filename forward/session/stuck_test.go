package session

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fill writes small pieces to sessions until nothing more fits in front of the path, which must be away; ended has one
// error for each session in the end.
func fill(sessions []*Conn) (ended chan error) {
	ended = make(chan error, len(sessions))
	for _, c := range sessions {
		go func() { // ends with its session
			for {
				if _, err := c.Write(make([]byte, 1000)); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	synctest.Wait()
	return ended
}

// With everything full in front of a path that is away, no reset can be queued, but whoever waits is free at once all the same.
func TestNobodyWaitsForAFullQueueAfterAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		var near, far []*Conn
		for range 6 {
			c, e := l.session()
			near, far = append(near, c), append(far, e)
		}
		if _, err := far[5].Write(make([]byte, 200<<10)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		silence(l.last()) // nobody has noticed yet
		writers := fill(near[:4])

		ctx, cancel := context.WithCancel(t.Context())
		dialled := make(chan error, 1)
		go func() { _, err := l.c.Dial(ctx, peerE, "svc"); dialled <- err }()
		if err := near[4].CloseWrite(); err != nil { // goes out with the next path, and waits for nothing
			t.Errorf("the half-close: %v", err)
		}
		read := make(chan error, 1)
		go func() { // what it reads needs new credit
			var err error
			for buf := make([]byte, 16<<10); err == nil; {
				_, err = near[5].Read(buf)
			}
			read <- err
		}()
		synctest.Wait()
		for what, ch := range map[string]chan error{"writer": writers, "dial": dialled, "reader": read} {
			select {
			case err := <-ch:
				t.Errorf("the %s did not wait: %v", what, err)
			default:
			}
		}

		cancel()
		why := errors.New("enough")
		l.c.End(near[0].id.String(), why)
		for _, c := range near[1:] {
			c.Reset()
		}
		synctest.Wait() // no time passes
		free := func(what string, ch chan error) (err error) {
			t.Helper()
			select {
			case err = <-ch:
			default:
				t.Errorf("the %s waits still", what)
			}
			return err
		}
		if err := free("dial", dialled); !errors.Is(err, context.Canceled) {
			t.Errorf("the dial: %v", err)
		}
		cut := 0
		for range 4 {
			if err := free("writer", writers); errors.Is(err, why) && errors.Is(err, ErrReset) {
				cut++
			} else if !errors.Is(err, net.ErrClosed) {
				t.Errorf("a writer: %v", err)
			}
		}
		if cut != 1 {
			t.Errorf("%d writers know why they were ended, want 1", cut)
		}
		if err := free("reader", read); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the reader: %v", err)
		}

		// The resets themselves go out with the next path.
		var all sync.WaitGroup
		for i, e := range far {
			all.Go(func() {
				var err error
				for buf := make([]byte, 64<<10); err == nil; {
					_, err = e.Read(buf)
				}
				for i == 4 && (err == nil || err == io.EOF) { // its half-close was queued first
					_, err = e.Write(make([]byte, 1))
					time.Sleep(time.Millisecond)
				}
				e.Reset()
				if !errors.Is(err, ErrReset) {
					t.Errorf("the far side: %v, want a reset", err)
				}
			})
		}
		start := time.Now()
		all.Wait()
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the far side heard of it after %v", took)
		}
		synctest.Wait()
		if n := len(l.c.Sessions()) + len(l.e.Sessions()); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}
