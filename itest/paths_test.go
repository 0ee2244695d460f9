//go:build linux

package itest

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

func TestPortRestrictedHomesMeetDirectlyOverQUIC(t *testing.T) {
	t.Parallel()
	w, local, path := directByQUIC(t)
	contains(t, path.Remote, w.homes[0].WAN().String())
	w.untilCarried(local, load, func(got ways) bool {
		return got.udp+got.tcp >= uint64(load.Up+load.Down) && got.relayed < mib
	})
	const wires = 2 * 2 * 20                                                           // ms
	w.laptop.WaitStatus("an RTT near that of the wires", func(s fwdtest.Status) bool { // of late it was measured amid the load
		path := s.Forwards[0].Path
		if path == nil || path.Kind != "direct" {
			return false
		}
		if path.RTT < wires {
			t.Fatalf("RTT %v ms, the wires have %d", path.RTT, wires)
		}
		return path.RTT <= 3*wires
	})
}

// directByQUIC is a world where laptop and NAS have met by QUIC, and the path on which they did. On a busy machine TCP,
// which gives QUIC a start of 300 ms, may be first, and stays; it is not three times in a row.
func directByQUIC(t *testing.T) (w *world, local string, path fwdtest.Path) {
	t.Helper()
	for range 3 {
		w = newWorld(t, lab.PortRestricted, lab.PortRestricted)
		connect, local := w.connect()
		w.transfer(local, fwdtest.Load{Up: 1000, Down: 1000}) // by whichever path there is
		path = pathIs(connect, "direct")
		if path.Transport == "quic-v1" {
			return w, local, path
		}
		t.Logf("direct by %q", path.Transport)
	}
	t.Fatal("direct by QUIC never")
	return nil, "", path
}

// The direct path is QUIC; what moves much gets a TCP connection beside it, punched like the first, and everything else
// stays. When TCP dies QUIC carries on.
func TestBulkGoesByTCPBesideQUIC(t *testing.T) {
	t.Parallel()
	w, local, _ := directByQUIC(t)
	for deadline := time.Now().Add(fwdtest.Limit); ; {
		w.lab.ForgetFlows()
		w.transfer(local, fwdtest.Load{Up: 6 * mib, Down: 6 * mib})
		got, path := w.carried(), w.laptop.WaitPath("data", "direct")
		if got.tcp > 8*mib && strings.Contains(path.Bulk, "/tcp/") { // a busy machine may have lost it again
			contains(t, path.Transport, "quic-v1")
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("bulk still goes %+v", got)
		}
	}
	w.settle(local, func(got ways) bool { return got.udp > got.tcp }) // little goes by the path
	w.homes[0].BlockTCP()
	w.transfer(local, fwdtest.Load{Up: 6 * mib, Down: 6 * mib})
}

// The same by a relay: bulk gets a circuit by TCP, on both legs. When one end's TCP dies, the circuit by QUIC carries on.
func TestBulkByRelayGoesByTCPBesideQUIC(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Symmetric, lab.Symmetric)
	_, local := w.connect()
	size := fwdtest.Load{Up: 6 * mib, Down: 6 * mib}
	for deadline := time.Now().Add(fwdtest.Limit); ; {
		w.transfer(local, size)
		path := w.laptop.WaitPath("data", "relay")
		if strings.Contains(path.Bulk, "/tcp/") {
			contains(t, path.Transport, "quic-v1")
			break
		}
		if path.Transport == "tcp" {
			break // where the machine is busy QUIC may have been silent for a second
		}
		if time.Now().After(deadline) {
			t.Fatalf("bulk still goes by %+v", path)
		}
	}
	w.homes[0].BlockTCP()
	w.transfer(local, size)
}

func TestHomesWithoutUDPMeetDirectlyOverTCP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.UDPBlocked, lab.UDPBlocked)
	connect, local := w.connect()
	w.transfer(local, fwdtest.Load{Up: 1000, Down: 1000})

	path := pathIs(connect, "direct")
	if !strings.HasPrefix(path.Transport, "tcp") {
		t.Errorf("direct by %q, want tcp", path.Transport)
	}
	w.untilCarried(local, load, func(got ways) bool {
		return got.tcp >= uint64(load.Up+load.Down) && got.udp == 0 && got.relayed < mib
	})
}

func TestSymmetricHomesAreServedByTheRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Symmetric, lab.Symmetric)
	connect, local := w.connect()
	w.transfer(local, load)
	path := pathIs(connect, "relay")
	if path.Relay != "relay" {
		t.Errorf("by relay %q", path.Relay)
	}
	if got := w.carried(); got.relayed < 2*uint64(load.Up+load.Down) || got.udp+got.tcp > mib {
		t.Errorf("the core carried %+v, want all of %d bytes to and from the relay", got, load.Up+load.Down)
	}
	if s := w.relay.Status(); s.Relaying == nil || s.Relaying.Circuits == 0 || s.Relaying.Reservations < 2 {
		t.Errorf("the relay's status: %+v", s.Relaying)
	}
	// Why it stays relayed is told once the attempt at a direct path is over.
	w.laptop.WaitStatus("a reason for the relayed path", func(s fwdtest.Status) bool {
		return len(s.Forwards) == 1 && s.Forwards[0].Path != nil && s.Forwards[0].Path.Reason != ""
	})
}

func TestOneLANNeedsNoRelayAndNoInternet(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	home := l.Home("home", lab.PortRestricted)
	home.Cable().Cut()
	w := &world{t: t, lab: l, homes: [2]*lab.Home{home, home}}
	w.nas = fwdtest.New(t, home.Host("nas"))
	w.laptop = fwdtest.New(t, home.Host("laptop"))
	w.expose() // creates the network
	w.laptop.Join(w.nas.Invite(), "laptop")
	connect, local := w.connect()
	w.transfer(local, load)
	path := pathIs(connect, "direct")
	contains(t, path.Remote, w.nas.Host.Addr().String())
	if flows := l.Flows(); len(flows) > 0 {
		t.Errorf("left the LAN: %v", flows)
	}
}

func TestHomesWithTheSamePrivateAddressesMeet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted, lab.LAN("192.168.1.0/24"))
	if a, b := w.nas.Host.Addr(), w.laptop.Host.Addr(); a != b {
		t.Fatalf("the lab gave %v and %v", a, b)
	}
	connect, local := w.connect()
	pathIs(connect, "direct")
	w.transfer(local, load)
}

func TestPathRelayStaysOnTheRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	// A direct path that exists is not taken either.
	direct, _ := w.connect()
	pathIs(direct, "direct")
	direct.Interrupt()

	relayed, local := w.connect("--path", "relay")
	w.lab.ForgetFlows()
	w.transfer(local, load)
	if got := w.carried(); got.relayed < 2*uint64(load.Up+load.Down) || got.udp+got.tcp > mib {
		t.Errorf("the core carried %+v, want all of %d bytes by the relay", got, load.Up+load.Down)
	}
	pathIs(relayed, "relay") // and it is told as what it is
}

// The transfer begins on the relay because the homes cannot reach each other yet, and goes on while they can.
func TestTransferSurvivesTheUpgradeToDirect(t *testing.T) {
	t.Parallel()
	line := lab.Shape{Delay: delay, Rate: 16e6}
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted, lab.Shaped(line, line))
	mend := w.lab.Sever(w.homes[0].WAN(), w.homes[1].WAN())
	connect, local := w.connect()

	begun, enough := make(chan struct{}), make(chan struct{})
	var once sync.Once
	load := fwdtest.Load{Up: 1 << 40, Down: 1 << 40, Until: enough, Limit: 5 * fwdtest.Limit, Progress: func(n int64) {
		if n > mib/2 {
			once.Do(func() { close(begun) })
		}
	}}
	type outcome struct {
		report fwdtest.Report
		err    error
	}
	done := make(chan outcome, 1)
	go func() { // ends with the transfer
		r, err := w.data.TransferFrom(w.laptop.Host, local, load)
		done <- outcome{r, err}
	}()
	select {
	case <-begun:
	case o := <-done:
		t.Fatalf("over before it had begun: %v", o.err)
	}
	pathIs(connect, "relay")
	if got := w.carried(); got.udp+got.tcp > 0 || got.relayed < mib/2 {
		t.Fatalf("began with %+v", got)
	}
	mend()
	pathIs(connect, "direct")
	w.laptop.WaitStatus("the session has migrated to the direct path", func(s fwdtest.Status) bool {
		return len(s.Sessions) == 1 && s.Sessions[0].Path == "direct" && s.Sessions[0].Migrations > 0
	})
	for deadline := time.Now().Add(fwdtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		got := w.carried()
		if got.udp+got.tcp > mib {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the core carried %+v: nothing worth mentioning went directly", got)
		}
	}
	close(enough)
	o := <-done
	if o.err != nil {
		t.Fatalf("transfer: %v", o.err)
	}
	t.Logf("%v, longest stall %v", o.report.Took, o.report.Stall)
	if o.report.Stall > stallLimit {
		t.Errorf("stalled for %v, at most %v here", o.report.Stall, stallLimit)
	}
}

func TestRelayBehindOneToOneNATIsReachedWhereItSays(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	w := &world{t: t, lab: l}
	for i, name := range []string{"a", "b"} {
		w.homes[i] = l.Home(name, lab.Symmetric, slow())
	}
	vps := l.Cloud("vps", "7.0.0.20")
	w.relay = fwdtest.New(t, vps)

	// Without --announce it must not pretend.
	r := w.relay.Run("relay", "--as", "relay")
	if r.Code != 2 || !strings.Contains(r.Stderr, "--announce") {
		t.Errorf("fwd relay on a private address: exit %d, want 2 and a word on --announce\n%s", r.Code, r.Stderr)
	}
	w.relaying = w.relay.Start("relay", "--as", "relay", "--announce", vps.PublicAddr().String())
	addrs := strings.Join(w.relaying.Wait("relay").Addrs, " ")
	contains(t, addrs, "/ip4/7.0.0.20/udp/4001/quic-v1")
	contains(t, addrs, "/ip4/7.0.0.20/tcp/4001")

	w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
	connect, local := w.connect()
	w.transfer(local, load)
	pathIs(connect, "relay")
}

// nc -N: the client ends its direction first and still wants the whole answer.
func TestHalfClosedClientGetsTheWholeAnswer(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"relay", "direct"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
			echo := fwdtest.ServeEcho(t, w.nas.Host, "127.0.0.1:9001")
			w.nas.Start("expose", echo.String(), "--name", "echo").Wait("exposed")
			p := w.laptop.Start("connect", "echo", "127.0.0.1:2223", "--path", way)
			local := p.Wait("listening").Local
			pathIs(p, way)
			for _, size := range []int{0, 1, 100_000} {
				conn, err := w.laptop.Host.Dial(t.Context(), "tcp", local)
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(fwdtest.Limit))
				sent := fmt.Sprint(size, strings.Repeat("x", size))
				_, err = io.WriteString(conn, sent)
				if err == nil {
					err = conn.(interface{ CloseWrite() error }).CloseWrite()
				}
				got, rerr := io.ReadAll(conn)
				conn.Close()
				if err != nil || rerr != nil || string(got) != sent {
					t.Errorf("%d bytes sent, %d came back: %v, %v", len(sent), len(got), err, rerr)
				}
			}
		})
	}
}
