//go:build linux

// Package load puts the real fwd under more than it will meet, and looks at what is left of it afterwards: memory,
// goroutines, descriptors. docs/load.md has the figures. Without -load or -soak nothing runs:
//
//	go test ./itest/load -load -v -timeout 1h
//	go test ./itest/load -load -v -run Churn -span 10m
//	go test ./itest/load -soak 1h -run TestSoak -v -timeout 2h
package load

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

var (
	load     = flag.Bool("load", false, "run what takes minutes and gigabytes")
	sessions = flag.Int("sessions", 10_000, "connections at once over one link")
	stalled  = flag.Int("stalled", 2_000, "of those, whose reader reads nothing")
	rate     = flag.Int("rate", 1000, "new connections a second")
	patience = flag.Duration("patience", 5*time.Minute, "how long memory may take to go back to the system")
	peers    = flag.Int("peers", 500, "machines with a reservation, from one address")
	span     = flag.Duration("span", time.Minute, "for so long")
)

// serverVar makes this program the target: as many sockets again as the test itself may have.
const serverVar = "FWD_LOAD_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverVar) != "" {
		if err := serve(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	fwdtest.Main(m)
}

// serve answers each connection as its first byte asks: 'e' sends back, 'd' gives without end.
func serve(say io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(say, l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var what [1]byte
			if _, err := io.ReadFull(c, what[:]); err != nil {
				return
			}
			if what[0] == 'e' {
				io.Copy(struct{ io.Writer }{c}, c) // not by splice, whose pipes take two descriptors each
				return
			}
			for buf := make([]byte, 64<<10); err == nil; {
				_, err = c.Write(buf)
			}
		}()
	}
}

// pair is a relay that owns the network, a NAS that exposes the target, and a laptop that uses it, in one network.
type pair struct {
	t                  *testing.T
	relay, nas, laptop *fwdtest.Peer
	local              string
}

func newPair(t *testing.T) *pair {
	t.Helper()
	if !*load {
		t.Skip("runs only with -load")
	}
	l := lab.New(t)
	host := l.Public("host", "7.0.0.10")
	p := &pair{t: t, relay: fwdtest.New(t, host), nas: fwdtest.New(t, host), laptop: fwdtest.New(t, host)}
	first := p.relay.Start("relay", "--as", "relay").Wait("invite").Invite
	p.nas.Join(first, "nas-box")
	p.laptop.Join(p.relay.Invite(), "laptop")

	target := host.Command(t.Context(), os.Args[0])
	target.Env = append(os.Environ(), serverVar+"=1")
	out, err := target.StdoutPipe()
	if err == nil {
		err = target.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Process.Kill(); target.Wait() })
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	p.nas.Start("expose", strings.TrimSpace(string(line[:n])), "--name", "data").Wait("exposed")
	p.local = p.laptop.Start("connect", "data", "127.0.0.1:0").Wait("listening").Local
	p.laptop.WaitPath("data", "direct")
	return p
}

// usage is what a process holds.
type usage struct {
	rss                     int64
	goroutines, descriptors int
}

func (u usage) String() string {
	return fmt.Sprintf("%d MiB, %d goroutines, %d descriptors", u.rss>>20, u.goroutines, u.descriptors)
}

// use reads it, after a collection of garbage.
func use(p interface {
	Must(args ...string) string
	Status() fwdtest.Status
}) (u usage) {
	p.Must("debug", "heap")
	u.goroutines = strings.Count("\n"+p.Must("debug", "stacks"), "\ngoroutine ")
	pid := p.Status().PID
	if list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		u.descriptors = len(list)
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			u.rss = kib << 10
		}
	}
	return u
}

// both reads laptop's and NAS's, and tells.
func (p *pair) both(when string) (u [2]usage) {
	p.t.Helper()
	u = [2]usage{use(p.laptop), use(p.nas)}
	p.t.Logf("%-28s entry %v; exit %v", when, u[0], u[1])
	return u
}

// settled waits until both hold about what they held, and fails where they do not. Memory takes longest: what is free
// goes back to the system by and by.
func (p *pair) settled(before [2]usage) {
	p.t.Helper()
	began := time.Now()
	for {
		now := [2]usage{use(p.laptop), use(p.nas)}
		over := false
		for i := range now {
			over = over || now[i].goroutines > before[i].goroutines+50 || now[i].descriptors > before[i].descriptors+20 || now[i].rss > before[i].rss+128<<20
		}
		if !over {
			break
		}
		if time.Since(began) > *patience {
			p.t.Errorf("%v after the end: %v, before: %v", *patience, now, before)
			break
		}
		time.Sleep(2 * time.Second)
	}
	p.both(fmt.Sprintf("%v after the end", time.Since(began).Round(time.Second)))
}

// dial opens a connection and says what it wants of the target.
func (p *pair) dial(what string) (net.Conn, error) {
	c, err := p.laptop.Host.Dial(p.t.Context(), "tcp", p.local)
	if err == nil {
		_, err = c.Write([]byte(what))
	}
	return c, err
}

// echo has one byte come back.
func echo(c net.Conn) (time.Duration, error) {
	var b [1]byte
	began := time.Now()
	c.SetDeadline(began.Add(fwdtest.Limit))
	if _, err := c.Write(b[:]); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, b[:])
	return time.Since(began), err
}

// many dials n connections, 16 at a time; what failed is counted.
func (p *pair) many(n int, what string) (conns []net.Conn, failed int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				c, err := p.dial(what)
				if err == nil && what == "e" {
					_, err = echo(c)
				}
				mu.Lock()
				if err != nil {
					failed++
				} else {
					conns = append(conns, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return conns, failed
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

func TestManySessionsAtOnce(t *testing.T) {
	p := newPair(t)
	// A first few, so that what is made once is there.
	conns, _ := p.many(100, "e")
	closeAll(conns)
	before := p.both("at rest")
	for round := range 2 {
		began := time.Now()
		conns, failed := p.many(*sessions, "e")
		took := time.Since(began)
		t.Logf("round %d: %d open in %v, %d failed", round+1, len(conns), took.Round(time.Millisecond), failed)
		if failed > 0 {
			t.Errorf("%d of %d connections failed", failed, *sessions)
		}
		now := p.both(fmt.Sprintf("with %d sessions", len(conns)))
		t.Logf("each session: %.1f KiB at the entry, %.1f KiB at the exit", float64(now[0].rss-before[0].rss)/1024/float64(len(conns)), float64(now[1].rss-before[1].rss)/1024/float64(len(conns)))
		var all []time.Duration
		for i := 0; i < len(conns); i += 10 {
			d, err := echo(conns[i])
			if err != nil {
				t.Errorf("a byte on an open session: %v", err)
				break
			}
			all = append(all, d)
		}
		told(t, "a byte there and back, one session at a time", all)
		closeAll(conns)
		p.settled(before)
	}
}

// Whoever reads nothing makes both ends hold what is on its way.
func TestStalledReaders(t *testing.T) {
	p := newPair(t)
	before := p.both("at rest")
	conns, failed := p.many(*stalled, "d")
	if failed > 0 {
		t.Errorf("%d of %d connections failed", failed, *stalled)
	}
	var last [2]usage
	for grows := true; grows; { // until nothing moves any more
		time.Sleep(3 * time.Second)
		now := [2]usage{use(p.laptop), use(p.nas)}
		grows = now[0].rss > last[0].rss+16<<20 || now[1].rss > last[1].rss+16<<20
		last = now
	}
	now := p.both(fmt.Sprintf("with %d stalled", len(conns)))
	t.Logf("each: %d KiB at the entry, %d KiB at the exit", (now[0].rss-before[0].rss)/1024/int64(len(conns)), (now[1].rss-before[1].rss)/1024/int64(len(conns)))
	c, err := p.dial("e")
	if err == nil {
		var took time.Duration
		took, err = echo(c)
		t.Logf("beside them a new session's byte takes %v", took)
		c.Close()
	}
	if err != nil {
		t.Errorf("a new session beside them: %v", err)
	}
	closeAll(conns)
	p.settled(before)
}

func TestChurn(t *testing.T) {
	p := newPair(t)
	conns, _ := p.many(100, "e")
	closeAll(conns)
	before := p.both("at rest")
	var mu sync.Mutex
	var all []time.Duration
	var failed, late int
	var wg sync.WaitGroup
	due := make(chan time.Time, 4**rate)
	for range 64 {
		wg.Go(func() {
			p.laptop.Host.Exec(func() { // to enter the namespace for each connection would be measured too
				for at := range due {
					took, err := once(p.local)
					mu.Lock()
					if err != nil {
						failed++
					}
					if time.Since(at) > time.Second {
						late++
					}
					all = append(all, took)
					mu.Unlock()
				}
			})
		})
	}
	began := time.Now()
	skipped := 0
	for n := 0; time.Since(began) < *span; {
		for ; n < int(time.Since(began).Seconds()*float64(*rate)); n++ {
			select {
			case due <- time.Now():
			default:
				skipped++
			}
		}
		time.Sleep(time.Millisecond)
	}
	close(due)
	wg.Wait()
	took := time.Since(began)
	t.Logf("%d connections in %v: %.0f a second, %d failed, %d late by a second, %d not begun in time", len(all), took.Round(time.Millisecond), float64(len(all))/took.Seconds(), failed, late, skipped)
	told(t, "connect, a byte there and back", all)
	if failed > 0 {
		t.Errorf("%d failed", failed)
	}
	p.both("at the end")
	p.settled(before)
}

func once(addr string) (time.Duration, error) {
	began := time.Now()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.(*net.TCPConn).SetLinger(0) // or 60 s of TIME_WAIT use up the ports
	if _, err := c.Write([]byte("e")); err != nil {
		return 0, err
	}
	_, err = echo(c)
	return time.Since(began), err
}

func told(t *testing.T, what string, all []time.Duration) {
	t.Helper()
	if len(all) == 0 {
		return
	}
	slices.Sort(all)
	at := func(p float64) time.Duration { return all[int(p*float64(len(all)-1))].Round(10 * time.Microsecond) }
	t.Logf("%s: median %v, 99%% %v, longest %v", what, at(0.5), at(0.99), at(1))
}
