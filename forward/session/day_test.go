package session

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestADayOfWorkLeavesNothingBehind is 24 hours in virtual time: short and bulk sessions, some half-closed for minutes, one
// silent for hours, one from morning to evening, over paths that break, fall silent, are replaced, and are away for up to
// half an hour. Every byte is checked, and nothing grows from hour to hour.
func TestADayOfWorkLeavesNothingBehind(t *testing.T) {
	const hours = 24
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		r := rand.New(rand.NewPCG(24, 1))
		day := newDialogue(l.session())
		var goroutines int
		var silent *dialogue
		for hour := range hours {
			var work sync.WaitGroup
			run := func(what string, f func() error) {
				work.Go(func() {
					if err := f(); err != nil {
						t.Errorf("hour %d: %s: %v", hour, what, err)
					}
				})
			}
			if hour%6 == 0 {
				silent = newDialogue(l.session())
			}
			for minute := range 30 {
				c, e := l.session()
				switch minute % 6 {
				default:
					run("short", func() error { defer c.Close(); defer e.Close(); return talk(c, e) })
				case 1:
					run("bulk", func() error { return both(c, e, 300<<10, 200<<10) })
				case 2:
					run("half-closed", func() error { return late20(c, e) })
				}
				switch r.IntN(6) {
				case 0:
					l.last().Reset()
				case 1:
					silence(l.last())
				case 2:
					l.c.Renew(peerE)
				}
				time.Sleep(time.Minute)
			}
			// Half an hour without a path, for some of it; whoever was at work waits.
			l.lose(peerE)
			l.breakAll()
			time.Sleep(time.Duration(r.IntN(25)) * time.Minute)
			l.lose("")
			run("all day", func() error { return day.ask(1000) })
			if hour%6 == 5 {
				run("silent for hours", func() error { defer silent.end(); return silent.ask(10) })
			}
			work.Wait()
			time.Sleep(5 * time.Minute)

			for name, e := range map[string]*Endpoint{"entry": l.c, "exit": l.e} {
				used := e.mem.inUse()
				if n := len(e.Sessions()); used != 0 || n > 2 || e.mem.unread.Load() != 0 {
					t.Fatalf("after hour %d the %s holds %d bytes to send, %d to read, %d sessions", hour, name, used, e.mem.unread.Load(), n)
				}
			}
			if n := runtime.NumGoroutine(); hour == 1 {
				goroutines = n
			} else if hour > 1 && n > goroutines+8 { // a lane more or less
				t.Fatalf("after hour %d %d goroutines, %d after the second", hour, n, goroutines)
			}
		}
		day.end()
	})
}

// inUse is what the rings hold.
func (m *memory) inUse() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// breakAll ends every stream there is.
func (l *lab) breakAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.streams {
		if s != nil {
			s.Reset()
		}
	}
	l.streams = nil
}

// late20 sends a question and its end, and gets the answer twenty minutes later.
func late20(c, e *Conn) error {
	defer c.Close()
	defer e.Close()
	if err := send(c, 5000); err != nil {
		return err
	}
	if err := receive(e, 5000); err != nil {
		return err
	}
	time.Sleep(20 * time.Minute)
	if err := send(e, 5000); err != nil {
		return err
	}
	return receive(c, 5000)
}

// dialogue is a session whose bytes are counted on and on.
type dialogue struct {
	c, e      *Conn
	out, in   numbers
	echo      sync.WaitGroup
	echoError error
}

func newDialogue(c, e *Conn) *dialogue {
	d := &dialogue{c: c, e: e}
	d.echo.Go(func() { _, d.echoError = io.Copy(onlyWriter{e}, onlyReader{e}) }) // ends with the session
	return d
}

// ask sends n bytes and has them come back.
func (d *dialogue) ask(n int64) error {
	if _, err := io.CopyN(onlyWriter{d.c}, &d.out, n); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	if _, err := io.CopyN(&d.in, onlyReader{d.c}, n); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

func (d *dialogue) end() {
	d.c.Reset()
	d.echo.Wait()
	d.e.Close()
}
