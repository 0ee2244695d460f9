//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"syscall"
)

// Host is a machine where programs run.
type Host struct {
	lab   *Lab
	node  *node
	name  string
	addr  netip.Addr
	addr6 netip.Addr
	cable *Cable
	home  *Home // nil: attached to the core
}

// Name is the host's, Addr its IPv4 address, Addr6 its global IPv6 address (the zero Addr without IPv6).
func (h *Host) Name() string      { return h.name }
func (h *Host) Addr() netip.Addr  { return h.addr }
func (h *Host) Addr6() netip.Addr { return h.addr6 }

// PublicAddr is the IPv4 address that the world sees: the host's own, or its router's.
func (h *Host) PublicAddr() netip.Addr {
	if h.home == nil || h.home.kind == Open {
		return h.addr
	}
	return h.home.PublicAddr()
}

// PublicAddr is the address that the world sees: the router's, or its carrier's.
func (r *Router) PublicAddr() netip.Addr {
	if r.opts.behind != nil {
		return r.opts.behind.PublicAddr()
	}
	return r.wan
}

// Cable is the host's own cable; a Cloud host's is that of its public address.
func (h *Host) Cable() *Cable { return h.cable }

// Command is exec.CommandContext for a program on this host. It is killed with ctx, with the lab, and with the
// test process, however that ends.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // sent when the host's thread ends
	return &Cmd{cmd, h.node}
}

// Cmd is an exec.Cmd that starts on a host.
type Cmd struct {
	*exec.Cmd
	node *node
}

// Start, Run, Output and CombinedOutput are those of exec.Cmd.
func (c *Cmd) Start() error { return c.node.do(c.Cmd.Start) }

func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

func (c *Cmd) CombinedOutput() ([]byte, error) {
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// Exec runs f on this host: sockets that f makes in its own goroutine are the host's for good. Goroutines that f
// starts are not on the host.
func (h *Host) Exec(f func()) { h.node.visit(f) }

// Dial connects from this host to a literal address: Dial(ctx, "tcp", "7.0.0.10:80").
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	h.Exec(func() { conn, err = new(net.Dialer).DialContext(ctx, network, addr) })
	return conn, err
}

// Listen listens on this host for "tcp" or "unix".
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	h.Exec(func() { l, err = net.Listen(network, addr) })
	return l, err
}

// ListenUDP opens a UDP socket on this host; ":0" takes any address and port.
func (h *Host) ListenUDP(addr string) (c *net.UDPConn, err error) {
	h.Exec(func() {
		var p net.PacketConn
		if p, err = net.ListenPacket("udp", addr); err == nil {
			c = p.(*net.UDPConn)
		}
	})
	return c, err
}

// Processes are the process IDs of what runs on this host now, daemons included.
func (h *Host) Processes() []int { return h.node.pids() }

// MoveTo takes the host out of its home and into another, as a laptop moves: the interface goes and comes back
// with an address of the other LAN. Programs go on running.
func (h *Host) MoveTo(to *Home) {
	h.lab.t.Helper()
	if h.home == nil {
		h.lab.t.Fatalf("lab: %s is not in a home", h.name)
	}
	eth0, err := h.node.nl.LinkByName("eth0")
	h.lab.must(err, "move")
	h.lab.must(h.node.nl.LinkDel(eth0), "move")
	h.join(to)
}

// join plugs the host into a home's LAN and gives it addresses.
func (h *Host) join(home *Home) {
	h.lab.t.Helper()
	h.home = home
	h.addr, h.addr6 = hostAddr(home.lan, home.hosts), netip.Addr{}
	home.hosts++
	cable, port := h.lab.plugIn(home.node, h.node)
	h.cable = cable
	addrs := []netip.Prefix{netip.PrefixFrom(h.addr, home.lan.Bits())}
	routes := []route{{"0.0.0.0/0", home.lan.Addr().String()}}
	if home.prefix6.IsValid() {
		h.addr6 = lan6(home.prefix6, home.hosts+15)
		addrs = append(addrs, netip.PrefixFrom(h.addr6, 64))
		routes = append(routes, route{"::/0", linkLocal6})
		subnet := netip.PrefixFrom(h.addr6, 64).Masked()
		lan0, err := home.node.nl.LinkByName("lan0")
		h.lab.must(err, "join")
		h.lab.must(home.node.route(lan0, route{to: subnet.String()}), "join")
	}
	h.lab.must(h.node.up("eth0", 0, addrs, routes...), "join")
	h.lab.must(h.node.ready("eth0"), "join")
	h.lab.must(home.node.ready(port), "join")
	h.lab.must(home.node.ready("lan0"), "join")
}

// protect puts up the host's own firewall, if it is to have one.
func (h *Host) protect(o options) {
	h.lab.t.Helper()
	if o.firewall == nil {
		return
	}
	var open []port
	for _, s := range o.firewall {
		p, err := parsePort(s)
		h.lab.must(err, "firewall")
		open = append(open, p)
	}
	h.lab.must(h.node.firewall(open), "firewall")
}
