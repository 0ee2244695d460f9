//go:build linux

package bench

import (
	"context"
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

// chunk is how much is written and read at once.
const chunk = 128 << 10

// server answers each connection as its first byte asks: 'u' takes, 'd' gives, both as fast as it goes, 'e' sends back.
type server struct {
	taken atomic.Int64 // bytes taken in all
}

func serve(t testing.TB, h *lab.Host, addr string) *server {
	t.Helper()
	ln, err := h.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{}
	t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.handle(c) // ends with the connection
		}
	}()
	return s
}

func (s *server) handle(c net.Conn) {
	defer c.Close()
	var what [1]byte
	if _, err := io.ReadFull(c, what[:]); err != nil {
		return
	}
	switch what[0] {
	case 'u':
		buf := make([]byte, chunk)
		for {
			n, err := c.Read(buf)
			s.taken.Add(int64(n))
			if err != nil {
				return
			}
		}
	case 'd':
		buf := make([]byte, chunk)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	case 'e':
		buf := make([]byte, 512)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

// flow is what a bulk measurement gave.
type flow struct {
	rate float64 // bit/s
	cpu  float64 // CPU seconds per GB, of all that carried it
}

// transfer keeps n streams busy until stop; taken counts what has arrived.
func transfer(t testing.TB, w *way, dir string, n int) (taken func() int64, stop func()) {
	t.Helper()
	var got atomic.Int64
	var conns []net.Conn
	var wg sync.WaitGroup
	for range n {
		c := w.dial(t)
		conns = append(conns, c)
		if _, err := c.Write([]byte(dir[:1])); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		wg.Go(func() { // ends with the connection
			buf := make([]byte, chunk)
			for {
				var n int
				var err error
				if dir == "up" {
					_, err = c.Write(buf)
				} else {
					n, err = c.Read(buf)
					got.Add(int64(n))
				}
				if err != nil {
					return
				}
			}
		})
	}
	taken = got.Load
	if dir == "up" {
		taken = w.server.taken.Load
	}
	return taken, func() {
		for _, c := range conns {
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
		wg.Wait()
	}
}

// warmUp is what does not count of a bulk measurement: slow start, growing windows, the move of a bulk lane.
const warmUp = time.Second

func bulk(t testing.TB, w *way, dir string, streams int, window time.Duration) flow {
	t.Helper()
	taken, stop := transfer(t, w, dir, streams)
	defer stop()
	time.Sleep(warmUp)
	return rateOf(w, taken, window)
}

func rateOf(w *way, taken func() int64, window time.Duration) flow {
	cpu, bytes, began := cpuOf(w.pids()), taken(), time.Now()
	time.Sleep(window)
	moved, took := float64(taken()-bytes), time.Since(began).Seconds()
	return flow{rate: 8 * moved / took, cpu: (cpuOf(w.pids()) - cpu) / (moved / 1e9)}
}

// roundTrip sends a byte and waits for it.
func roundTrip(c net.Conn) (time.Duration, error) {
	var b [1]byte
	began := time.Now()
	if _, err := c.Write([]byte{'x'}); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, b[:])
	return time.Since(began), err
}

// echo measures round trips of a byte on a connection that is open.
func echo(t testing.TB, w *way, n int) []time.Duration {
	t.Helper()
	c := w.dial(t)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(fwdtest.Limit))
	if _, err := c.Write([]byte("e")); err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	var all []time.Duration
	for i := range n + n/10 {
		d, err := roundTrip(c)
		if err != nil {
			t.Fatalf("%s: echo: %v", w.name, err)
		}
		if i >= n/10 {
			all = append(all, d)
		}
	}
	return all
}

// firstByte opens a connection and has one byte come back.
func firstByte(w *way) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fwdtest.Limit)
	defer cancel()
	var took time.Duration
	var err error
	// All in the host's namespace: to enter it once for each connection would be measured, too.
	w.from.Exec(func() { took, err = firstByteHere(ctx, w.addr) })
	return took, err
}

func firstByteHere(ctx context.Context, addr string) (time.Duration, error) {
	began := time.Now()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(began.Add(fwdtest.Limit))
	if _, err := c.Write([]byte("ex")); err != nil {
		return 0, err
	}
	var b [1]byte
	_, err = io.ReadFull(c, b[:])
	return time.Since(began), err
}

func opens(t testing.TB, w *way, n int) []time.Duration {
	t.Helper()
	var all []time.Duration
	for range n {
		d, err := firstByte(w)
		if err != nil {
			t.Fatalf("%s: new connection: %v", w.name, err)
		}
		all = append(all, d)
	}
	return all
}

// openRate is connections a second, each with a byte there and back, by 16 clients at once.
func openRate(t testing.TB, w *way, d time.Duration) (perSecond float64, failed int64) {
	const clients = 16
	var ok, bad atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range clients {
		wg.Go(func() {
			w.from.Exec(func() {
				for time.Since(began) < d {
					if _, err := firstByteHere(context.Background(), w.addr); err != nil {
						bad.Add(1)
					} else {
						ok.Add(1)
					}
				}
			})
		})
	}
	wg.Wait()
	return float64(ok.Load()) / time.Since(began).Seconds(), bad.Load()
}

// keystrokes are round trips of a byte every 20 ms while a transfer goes the same way.
func keystrokes(t testing.TB, w *way, d time.Duration) []time.Duration {
	t.Helper()
	c := w.dial(t)
	defer c.Close()
	_, stop := transfer(t, w, "up", 1)
	defer stop()
	_ = c.SetDeadline(time.Now().Add(fwdtest.Limit))
	if _, err := c.Write([]byte("e")); err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	time.Sleep(warmUp)
	var all []time.Duration
	for began := time.Now(); time.Since(began) < d; time.Sleep(20 * time.Millisecond) {
		took, err := roundTrip(c)
		if err != nil {
			t.Fatalf("%s: echo under load: %v", w.name, err)
		}
		all = append(all, took)
	}
	return all
}

// cpuOf is the CPU time that processes have used, seconds: user and system, by /proc.
func cpuOf(pids []int) float64 {
	var ticks float64
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// After the name, which may hold anything but ends with the last ')': state is field 3, utime 14, stime 15.
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, s := range f[11:13] {
			n, _ := strconv.ParseFloat(s, 64)
			ticks += n
		}
	}
	return ticks / 100 // USER_HZ is 100 on every Linux
}

// rssOf is the resident memory of processes, bytes.
func rssOf(pids []int) (sum float64) {
	for _, pid := range pids {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
				n, _ := strconv.ParseFloat(f[1], 64)
				sum += 1024 * n
			}
		}
	}
	return sum
}

// percentile of durations, in seconds.
func percentile(all []time.Duration, p float64) float64 {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[min(len(all)-1, int(p*float64(len(all))))].Seconds()
}
