//go:build linux

package bench

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// idleSessions is how many connections do nothing at once.
const idleSessions = 10_000

// measureIdle tells what daemons cost that have nothing to do, then with 10 000 silent sessions on one link.
func measureIdle(t *testing.T, r *report) {
	l := lab.New(t)
	p := newPair(t, l)
	// Its own process: one may not have enough open files for both ends.
	runSelf(t, p.b, "server 127.0.0.1:9001")
	w := fwdWay(t, l, "fwd direct", p, "auto", "direct", "127.0.0.1:9001")
	ends := map[string]*fwdtest.Peer{"entry": w.peers[0], "exit": w.peers[1], "relay": w.peers[2]}

	time.Sleep(5 * time.Second) // the start is over: punching, the first probes
	const quiet = 20 * time.Second
	cpu := map[string]float64{}
	for name, p := range ends {
		cpu[name] = cpuOf(p.Pids())
	}
	l.ForgetFlows()
	time.Sleep(quiet)
	for name, p := range ends {
		r.add(name, "idle cpu", (cpuOf(p.Pids())-cpu[name])/quiet.Seconds())
		r.add(name, "idle rss", daemonRSS(p))
	}
	var carried uint64
	for _, f := range l.Flows() {
		if f.Src.Addr() == w.peers[0].Host.PublicAddr() || f.Dst.Addr() == w.peers[0].Host.PublicAddr() {
			carried += f.Bytes
		}
	}
	r.add("entry", "idle traffic", float64(carried)/quiet.Hours())

	before := map[string]float64{"entry": daemonRSS(ends["entry"]), "exit": daemonRSS(ends["exit"])}
	conns := make([]net.Conn, idleSessions)
	began := time.Now()
	var wg sync.WaitGroup
	const clients = 32
	for i := range clients {
		wg.Go(func() {
			w.from.Exec(func() {
				for j := i; j < idleSessions; j += clients {
					c, err := net.Dial("tcp", w.addr)
					if err == nil {
						_ = c.SetDeadline(time.Now().Add(fwdtest.Limit))
						if _, err = c.Write([]byte("e")); err == nil {
							_, err = roundTrip(c)
						}
						conns[j] = c
					}
					if err != nil {
						t.Errorf("idle session %d: %v", j, err)
						return
					}
				}
			})
		})
	}
	wg.Wait()
	r.add("all", "idle opening", time.Since(began).Seconds())
	time.Sleep(5 * time.Second) // buffers that grew are given back
	for name := range before {
		r.add(name, "idle sessions rss", daemonRSS(ends[name]))
		r.add(name, "idle session", (daemonRSS(ends[name])-before[name])/idleSessions)
	}
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// daemonRSS is the memory of a peer's largest process: the daemon, not the commands that wait on it.
func daemonRSS(p *fwdtest.Peer) (most float64) {
	for _, pid := range p.Pids() {
		most = max(most, rssOf([]int{pid}))
	}
	return most
}

// measureCold starts both ends behind NATs at the same time, the relay being there.
func measureCold(t *testing.T, r *report) {
	l := lab.New(t)
	relay := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	relaying := relay.Start("relay", "--as", "relay")
	relaying.Wait("relay")
	homes := [2]*lab.Home{l.Home("a", lab.PortRestricted), l.Home("b", lab.PortRestricted)}
	a, b := fwdtest.New(t, homes[0].Host("a")), fwdtest.New(t, homes[1].Host("b"))
	serve(t, b.Host, "127.0.0.1:9000")
	b.Join(relaying.Wait("invite").Invite, "far")
	a.Join(relay.Invite(), "near")
	expose := b.Start("expose", "127.0.0.1:9000", "--name", "data")
	expose.Wait("exposed") // known to the network by name
	expose.Interrupt()
	w := &way{name: "cold", from: a.Host, addr: "127.0.0.1:2222"}
	for range 2 * *rounds {
		for _, p := range []*fwdtest.Peer{a, b} {
			p.Run("stop")
			for len(p.Pids()) > 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for _, h := range homes {
			h.FlushNAT()
		}
		began := time.Now()
		expose := b.Start("expose", "127.0.0.1:9000", "--name", "data")
		connect := a.Start("connect", "data", w.addr)
		direct := make(chan float64, 1)
		go func() { // ends with the direct path or the process
			connect.WaitFor("path", func(e fwdtest.Event) bool { return e.Path != nil && e.Path.Kind == "direct" })
			direct <- time.Since(began).Seconds()
		}()
		connect.Wait("listening")
		for {
			if _, err := firstByte(w); err == nil {
				break
			}
			if time.Since(began) > fwdtest.Limit {
				t.Fatal("nothing comes back")
			}
		}
		r.add("cold", "first byte", time.Since(began).Seconds())
		r.add("cold", "direct", <-direct)
		connect.Interrupt()
		expose.Interrupt()
	}
}

// wire is the long line of the lossy measurements: 50 ms and 100 Mbit/s, half a round trip's worth of queue.
func wire(rtt time.Duration, rate int, loss float64) lab.Shape {
	return lab.Shape{Delay: rtt / 2, Rate: rate, Queue: int(float64(rate) / 8 * rtt.Seconds()), Loss: loss}
}

// measureLossy sends one stream over a line that loses packets.
func measureLossy(t *testing.T, r *report) {
	const rtt, rate = 50 * time.Millisecond, 100e6
	clean := wire(rtt, rate, 0)
	l := lab.New(t)
	ways := longWays(t, l, lab.Shaped(clean, clean), nil)
	cables := map[*way]*lab.Cable{}
	for w, p := range ways.of {
		cables[w] = p.homes[0].Cable()
	}
	for range *rounds {
		for _, loss := range []float64{0, 0.001, 0.01} {
			for _, w := range ways.list {
				streams := []int{1}
				if w.name == udpAlone {
					streams = []int{1, 4}
				}
				for _, n := range streams {
					shape := wire(rtt, rate, loss)
					cables[w].Reshape(shape, shape)
					taken, stop := oneByOne(t, w, n)
					time.Sleep(4 * time.Second) // slow start, and the move to the better path
					f := rateOf(w, taken, 8*time.Second)
					stop()
					cables[w].Reshape(clean, clean)
					time.Sleep(time.Second) // what was queued is gone
					name := w.name
					if n > 1 {
						name = fmt.Sprintf("%s, %d streams", name, n)
					}
					r.add(name, fmt.Sprintf("loss %g %%", 100*loss), f.rate)
					t.Logf("loss %g: %s: %.1f Mbit/s %s", loss, name, f.rate/1e6, w.path())
				}
			}
		}
	}
}

// oneByOne begins n streams upwards, each when the one before has moved enough to be told from a shell: the next one gets a
// lane for itself.
func oneByOne(t *testing.T, w *way, n int) (taken func() int64, stop func()) {
	const shown = 2 << 20
	var stops []func()
	for range n {
		before := w.server.taken.Load()
		_, stop := transfer(t, w, "up", 1)
		stops = append(stops, stop)
		for deadline := time.Now().Add(fwdtest.Limit); n > 1 && w.server.taken.Load() < before+int64(len(stops))*shown; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: nothing moves", w.name)
			}
		}
	}
	return w.server.taken.Load, func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// measureFar sends one stream over a long fat line, with buffers of the kernel that can hold what is on its way: the usual
// 4 and 6 MiB let no TCP fill it.
func measureFar(t *testing.T, r *report) {
	line := wire(200*time.Millisecond, 1e9, 0)
	line.Bunched = true
	l := lab.New(t)
	// Before fwd begins, for what a connection's window can grow to is settled when it is made.
	ways := longWays(t, l, lab.Shaped(line, line), map[string]string{
		"tcp_rmem": "4096 131072 134217728",
		"tcp_wmem": "4096 131072 134217728",
	})
	for range *rounds {
		for _, w := range ways.list {
			taken, stop := transfer(t, w, "up", 1)
			time.Sleep(8 * time.Second)
			f := rateOf(w, taken, 6*time.Second)
			stop()
			time.Sleep(time.Second)
			r.add(w.name, "far", f.rate)
			t.Logf("far: %s: %.1f Mbit/s %s", w.name, f.rate/1e6, w.path())
		}
	}
}

type wayList struct {
	list []*way
	of   map[*way]*pair
}

// longWays are raw TCP with both controls of congestion, and fwd by either transport, each with a line of its own between
// hosts with these settings of net.ipv4.
func longWays(t *testing.T, l *lab.Lab, line lab.Option, settings map[string]string) wayList {
	ways := wayList{of: map[*way]*pair{}}
	pairOf := func() *pair {
		p := newPair(t, l, line)
		for _, h := range []*lab.Host{p.a, p.b} {
			for name, value := range settings {
				if err := sysctl(h, name, value); err != nil {
					t.Logf("%s on %s: %v", name, h.Name(), err)
				}
			}
		}
		return p
	}
	add := func(w *way, p *pair) {
		ways.list = append(ways.list, w)
		ways.of[w] = p
	}
	for _, cc := range []string{"bbr", "cubic"} {
		p := pairOf()
		add(&way{name: raw + ", " + cc, from: p.a, addr: p.far(), server: p.server, pids: nothing, path: noPath, control: cc}, p)
	}
	for _, name := range []string{"fwd direct", udpAlone} {
		if !wanted(name) {
			continue
		}
		p := pairOf()
		if name != "fwd direct" {
			p.homes[0].BlockTCP()
		}
		add(fwdWay(t, l, name, p, "auto", "direct"), p)
	}
	return ways
}
