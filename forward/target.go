package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Target is what an exit dials. Its text form is one of
//
//	22               port of this machine, printed as 127.0.0.1:22
//	host:22          name, IPv4 or [IPv6] address of a machine the exit can reach
//	8000-8010        eleven ports, host:8000-8010 too
//	unix:/path       unix socket
//	53/udp           the same for UDP, host:53/udp too; /tcp may be written and is not printed
//
// What String prints ParseTarget reads back as the same Target.
type Target struct {
	Network string // "tcp", "udp" or "unix"
	Address string // host:port or path, as net.Dial takes them; of a range its first port
	More    int    // further ports that follow it
}

// ParseTarget reads a target's text form. Its errors say what to write instead.
func ParseTarget(s string) (Target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", s, err)
	}
	return t, nil
}

func parseTarget(s string) (Target, error) {
	if s == "" {
		return Target{}, fmt.Errorf("is empty; write a port (22), host:port, or unix:/path")
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return Target{Network: "unix", Address: path}, checkSocketPath(path)
	}
	if strings.Contains(s, "://") {
		return Target{}, fmt.Errorf("is a URL; write only its host:port")
	}
	if strings.HasPrefix(s, "/") {
		return Target{}, fmt.Errorf("for a unix socket write unix:%s", s)
	}
	network := "tcp"
	addr, suffix, ok := strings.Cut(s, "/")
	if ok {
		if suffix != "tcp" && suffix != "udp" {
			return Target{}, fmt.Errorf("%q is no protocol; write /tcp, /udp, or nothing for TCP", suffix)
		}
		network = suffix
	}
	if !strings.Contains(addr, ":") {
		port, more, err := parsePorts(addr, parsePort)
		if err != nil {
			return Target{}, err
		}
		return Target{network, joinHostPort("127.0.0.1", port), more}, nil
	}
	host, port, err := splitHostPort(addr)
	if err != nil {
		return Target{}, err
	}
	if host == "" {
		return Target{}, fmt.Errorf("has no host; for this machine write only the port, %s", port)
	}
	if err := checkHost(host); err != nil {
		return Target{}, err
	}
	n, more, err := parsePorts(port, parsePort)
	if err != nil {
		return Target{}, err
	}
	return Target{network, joinHostPort(host, n), more}, nil
}

// String is the text form.
func (t Target) String() string {
	if t.Network == "unix" {
		return "unix:" + t.Address
	}
	text := t.Address + rangeEnd(t.Port(), t.More)
	if t.Network == "udp" {
		text += "/udp"
	}
	return text
}

// At is the i-th port of a range by itself, from 0; every other target has only that.
func (t Target) At(i int) (_ Target, ok bool) {
	if i < 0 || i > t.More {
		return Target{}, false
	}
	if i > 0 {
		host, _, _ := net.SplitHostPort(t.Address)
		t.Address = joinHostPort(host, t.Port()+i)
	}
	t.More = 0
	return t, true
}

// UDP reports whether it takes datagrams.
func (t Target) UDP() bool { return t.Network == "udp" }

// Port is the target's port, the first of a range, 0 for a unix socket.
func (t Target) Port() int { return portOf(t.Network, t.Address) }

// Dial connects to a target that is not UDP, within [TargetTimeout].
func (t Target) Dial(ctx context.Context) (Conn, error) {
	if t.UDP() {
		return nil, fmt.Errorf("target %s takes datagrams, not connections", t)
	}
	ctx, cancel := context.WithTimeout(ctx, TargetTimeout)
	defer cancel()
	d := net.Dialer{KeepAliveConfig: keepAlive}
	for wait := backlogFirst; ; wait = min(2*wait, backlogLast) {
		c, err := d.DialContext(ctx, t.Network, t.Address)
		switch {
		case err == nil:
			return c.(Conn), nil
		case t.Network != "unix" || !errors.Is(err, syscall.EAGAIN):
			return nil, err // says "dial tcp 127.0.0.1:22: …"
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("its backlog stays full: %w", err)
		}
	}
}

// A unix socket whose backlog is full says so at once (EAGAIN), where the kernel would try
// a TCP target again by itself: so do we, after 5 ms, doubling up to 100 ms.
const (
	backlogFirst = 5 * time.Millisecond
	backlogLast  = 100 * time.Millisecond
)

// maxSocketPath is the longest unix socket path that every system takes: 103 bytes,
// macOS's sun_path of 104 without its final zero (Linux has 108).
const maxSocketPath = 103

func checkSocketPath(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("has no path; write unix:/path/to/socket")
	case !filepath.IsAbs(path) && !strings.HasPrefix(path, "/"):
		return fmt.Errorf("a unix socket needs its whole path, unix:/path/to/socket")
	case strings.ContainsFunc(path, isControl):
		return fmt.Errorf("the path contains a control character")
	case len(path) > maxSocketPath:
		return fmt.Errorf("the path has %d bytes; systems allow a unix socket %d", len(path), maxSocketPath)
	}
	return nil
}

// maxHost is the longest DNS name, 253 bytes (RFC 1035, section 2.3.4).
const maxHost = 253

func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	bad := func(r rune) bool {
		return !(r == '-' || r == '_' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r >= 0x80)
	}
	if strings.ContainsFunc(host, bad) || len(host) > maxHost || strings.HasPrefix(host, "-") {
		return fmt.Errorf("%q is no host name or address", host)
	}
	return nil
}

// splitHostPort splits at the last colon and wants an IPv6 address in brackets.
func splitHostPort(s string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(s)
	if err == nil {
		if addr, perr := netip.ParseAddr(host); strings.HasPrefix(s, "[") && (perr != nil || !addr.Is6()) {
			return "", "", fmt.Errorf("%q in brackets is no IPv6 address", host)
		}
		return host, port, nil
	}
	if addr, perr := netip.ParseAddr(s); perr == nil && addr.Is6() {
		return "", "", fmt.Errorf("has no port; write [%s]:PORT", s)
	}
	if i := strings.LastIndexByte(s, ':'); strings.Count(s, ":") > 1 {
		if addr, perr := netip.ParseAddr(s[:i]); perr == nil && addr.Is6() {
			return "", "", fmt.Errorf("an IPv6 address stands in brackets; write [%s]:%s", s[:i], s[i+1:])
		}
	}
	return "", "", fmt.Errorf("is not host:port")
}

func joinHostPort(host string, port int) string {
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// parsePort reads a TCP or UDP port, 1 to 65535.
func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	switch {
	case s == "":
		return 0, fmt.Errorf("has no port")
	case err != nil && strings.ContainsFunc(s, notDigit):
		return 0, fmt.Errorf("%q is no port number", s)
	case err != nil || n == 0:
		return 0, fmt.Errorf("port %s is outside 1 to 65535", s)
	}
	return int(n), nil
}

func notDigit(r rune) bool  { return r < '0' || r > '9' }
func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// portOf is the port of an address that was parsed here, 0 if it has none.
func portOf(network, address string) int {
	if network == "unix" {
		return 0
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(port)
	return n
}
