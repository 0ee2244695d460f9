//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// way is one way of getting from a host to a server on another one.
type way struct {
	name    string
	from    *lab.Host
	addr    string        // what is dialled on from
	server  *server       // what answers at the other end
	pids    func() []int  // what carries the bytes, all hosts
	client  *fwdtest.Peer // of fwd's ways, else nil
	peers   []*fwdtest.Peer
	path    func() string // what fwd says of its path
	control string        // TCP_CONGESTION of the connection dialled; empty: the usual
}

func (w *way) dial(t testing.TB) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), fwdtest.Limit)
	defer cancel()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		if w.control == "" {
			return nil
		}
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, w.control)
		})
		return errors.Join(err, failed)
	}}
	var c net.Conn
	var err error
	w.from.Exec(func() { c, err = d.DialContext(ctx, "tcp", w.addr) })
	if err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	return c
}

const (
	raw         = "raw TCP"
	plainProxy  = "plain TCP proxy"
	tlsProxy    = "TLS proxy"
	libp2pProxy = "libp2p streams"
	udpAlone    = "fwd direct, UDP alone"
)

// newWays builds one internet with a pair of hosts for each way, both in networks without NAT, no delay on any wire.
func newWays(t *testing.T) []*way {
	l := lab.New(t)
	ways := []*way{rawWay(t, l, raw)}
	for _, w := range []struct {
		name string
		make func() *way
	}{
		{plainProxy, func() *way { return proxyWay(t, l, plainProxy, overTCP) }},
		{tlsProxy, func() *way { return proxyWay(t, l, tlsProxy, overTLS) }},
		{libp2pProxy, func() *way { return proxyWay(t, l, libp2pProxy, overLibp2p) }},
		{"ssh -L", func() *way { return sshWay(t, l) }},
		{"fwd direct", func() *way { return fwdWay(t, l, "fwd direct", newPair(t, l), "auto", "direct") }},
		{"fwd direct, TCP alone", func() *way {
			p := newPair(t, l)
			p.homes[0].BlockUDP()
			return fwdWay(t, l, "fwd direct, TCP alone", p, "auto", "direct")
		}},
		{udpAlone, func() *way {
			p := newPair(t, l)
			p.homes[0].BlockTCP()
			return fwdWay(t, l, udpAlone, p, "auto", "direct")
		}},
		{"fwd relay", func() *way { return fwdWay(t, l, "fwd relay", newPair(t, l), "relay", "relay") }},
		{"fwd relay, UDP alone", func() *way {
			p := newPair(t, l)
			p.homes[0].BlockTCP()
			p.homes[1].BlockTCP()
			return fwdWay(t, l, "fwd relay, UDP alone", p, "relay", "relay")
		}},
	} {
		if wanted(w.name) {
			if made := w.make(); made != nil {
				ways = append(ways, made)
			}
		}
	}
	return ways
}

// pair is two hosts, each behind a router of its own, with a server on the second.
type pair struct {
	homes  [2]*lab.Home
	a, b   *lab.Host
	server *server
}

func newPair(t testing.TB, l *lab.Lab, opts ...lab.Option) *pair {
	p := &pair{homes: [2]*lab.Home{l.Home("a", lab.Open, opts...), l.Home("b", lab.Open)}}
	p.a, p.b = p.homes[0].Host("a"), p.homes[1].Host("b")
	for _, h := range []*lab.Host{p.a, p.b} {
		congestion(t, h)
	}
	p.server = serve(t, p.b, "0.0.0.0:9000")
	return p
}

// usualControl is the control of congestion that the hosts' TCP sockets begin with: cubic, as on nearly all machines, or
// where this machine does not let namespaces have it reno, which is the same without loss.
var usualControl string

func congestion(t testing.TB, h *lab.Host) {
	t.Helper()
	var err error
	for _, usualControl = range []string{"cubic", "reno"} {
		if err = sysctl(h, "tcp_congestion_control", usualControl); err == nil {
			return
		}
	}
	t.Logf("congestion control on %s: %v", h.Name(), err)
}

// sysctl sets one of net.ipv4 in the host's namespace.
func sysctl(h *lab.Host, name, value string) (err error) {
	h.Exec(func() { err = os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0) })
	return err
}

func nothing() []int        { return nil }
func noPath() string        { return "" }
func (p *pair) far() string { return net.JoinHostPort(p.b.Addr().String(), "9000") }

func rawWay(t testing.TB, l *lab.Lab, name string, opts ...lab.Option) *way {
	p := newPair(t, l, opts...)
	return &way{name: name, from: p.a, addr: p.far(), server: p.server, pids: nothing, path: noPath}
}

// proxyWay is a process that copies at each end: what a forwarder without sessions and names would be (proxy_test.go).
func proxyWay(t *testing.T, l *lab.Lab, name string, between carrier) *way {
	p := newPair(t, l)
	far := net.JoinHostPort(p.b.Addr().String(), "7000")
	runSelf(t, p.b, fmt.Sprintf("%s accept 0.0.0.0:7000 127.0.0.1:9000", between))
	runSelf(t, p.a, fmt.Sprintf("%s dial 127.0.0.1:2222 %s", between, far))
	w := &way{name: name, from: p.a, addr: "127.0.0.1:2222", server: p.server, path: noPath,
		pids: func() []int { return append(p.a.Processes(), p.b.Processes()...) }}
	w.await(t)
	return w
}

// sshWay is ssh -L; nil where there is no sshd.
func sshWay(t *testing.T, l *lab.Lab) *way {
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd"
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file(key)).CombinedOutput(); err != nil {
			t.Logf("no ssh: %v %s", err, out)
			return nil
		}
	}
	config := fmt.Sprintf("Port 2200\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n",
		file("host"), file("user.pub"))
	if err := os.WriteFile(file("config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(sshd, "-t", "-f", file("config")).CombinedOutput(); err != nil {
		t.Logf("no sshd: %v %s", err, out)
		return nil
	}
	p := newPair(t, l)
	run(t, p.b.Command(context.Background(), sshd, "-D", "-f", file("config")))
	w := &way{name: "ssh -L", from: p.a, addr: "127.0.0.1:2222", server: p.server, path: noPath,
		pids: func() []int { return append(p.a.Processes(), p.b.Processes()...) }}
	run(t, p.a.Command(context.Background(), "sh", "-c", fmt.Sprintf("sleep 1; exec ssh -N -i %s -p 2200 "+
		"-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=%s -o LogLevel=ERROR -L 2222:127.0.0.1:9000 %s",
		file("user"), file("known"), p.b.Addr())))
	w.await(t)
	return w
}

// runSelf starts this binary as a proxy or server on a host.
func runSelf(t testing.TB, h *lab.Host, what string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(context.Background(), self)
	cmd.Env = append(os.Environ(), proxyVar+"="+what)
	cmd.Stderr = os.Stderr
	run(t, cmd)
}

// run starts a program that the end of the test kills.
func run(t testing.TB, cmd *lab.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// await waits until one byte comes back.
func (w *way) await(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(fwdtest.Limit); ; time.Sleep(20 * time.Millisecond) {
		if _, err := firstByte(w); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%s: nothing comes back: %v", w.name, err)
		}
	}
}

// fwdWay is fwd between the hosts of p, with a relay of their own and the server as target unless another is
// named; it waits until the path is of that kind.
func fwdWay(t testing.TB, l *lab.Lab, name string, p *pair, path, kind string, target ...string) *way {
	target = append(target, "127.0.0.1:9000")
	relays++
	relay := fwdtest.New(t, l.Public("relay", fmt.Sprintf("7.0.0.%d", 10+relays)))
	congestion(t, relay.Host)
	relaying := relay.Start("relay", "--as", "relay")
	relaying.Wait("relay")
	a, b := fwdtest.New(t, p.a), fwdtest.New(t, p.b)
	b.Join(relaying.Wait("invite").Invite, "far")
	a.Join(relay.Invite(), "near")
	b.Start("expose", target[0], "--name", "data").Wait("exposed")
	connect := a.Start("connect", "data", "127.0.0.1:2222", "--path", path)
	w := &way{name: name, from: p.a, addr: connect.Wait("listening").Local, server: p.server, client: a, peers: []*fwdtest.Peer{a, b, relay}}
	connect.WaitFor("path", func(e fwdtest.Event) bool { return e.Path != nil && e.Path.Kind == kind })
	w.await(t)
	w.pids = func() []int {
		var all []int
		for _, p := range w.peers {
			all = append(all, p.Pids()...)
		}
		return all
	}
	w.path = func() string {
		for _, f := range a.Status().Forwards {
			if f.Path != nil {
				return f.Path.Kind + " " + f.Path.Remote + ", bulk " + f.Path.Bulk
			}
		}
		return ""
	}
	return w
}

// relays counts them: each has an address.
var relays int
