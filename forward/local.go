package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Local is where an entry accepts connections. Its text form is one of
//
//	2222             port on this machine alone, printed as 127.0.0.1:2222; 0: any free one
//	addr:2222        port on one address; 0.0.0.0:2222 on all of IPv4, [::]:2222 of IPv6 too
//	8000-8010        eleven ports, addr:8000-8010 too
//	2222/udp         for UDP alone, where a service has both
//	unix:/path       unix socket, which only this user may open
//	-                standard input and output, one connection
//	(nothing)        to be chosen: the zero Local
//
// What String prints ParseLocal reads back as the same Local.
type Local struct {
	network string // "tcp", "udp", "unix", "stdio" or, to be chosen, ""
	address string // host:port or path; of a range its first port
	more    int    // further ports that follow it
}

// ParseLocal reads a local address's text form. Its errors say what to write instead.
func ParseLocal(s string) (Local, error) {
	l, err := parseLocal(s)
	if err != nil {
		return Local{}, fmt.Errorf("local address %q: %w", s, err)
	}
	return l, nil
}

func parseLocal(s string) (Local, error) {
	switch s {
	case "":
		return Local{}, nil
	case "-":
		return Local{network: "stdio"}, nil
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return Local{network: "unix", address: path}, checkSocketPath(path)
	}
	if strings.Contains(s, "://") {
		return Local{}, fmt.Errorf("is a URL; write only its port")
	}
	if strings.HasPrefix(s, "/") {
		return Local{}, fmt.Errorf("for a unix socket write unix:%s", s)
	}
	network := "tcp"
	if addr, suffix, ok := strings.Cut(s, "/"); ok {
		if suffix != "udp" {
			return Local{}, fmt.Errorf("%q is no protocol; write /udp, or nothing for what the service has", suffix)
		}
		s, network = addr, suffix
	}
	if !strings.Contains(s, ":") {
		port, more, err := parsePorts(s, parseListenPort)
		if err != nil {
			return Local{}, err
		}
		return Local{network, joinHostPort("127.0.0.1", port), more}, nil
	}
	host, port, err := splitHostPort(s)
	if err != nil {
		return Local{}, err
	}
	if host == "" {
		return Local{}, fmt.Errorf("for this machine alone write %s, for every network it is on 0.0.0.0:%s", port, port)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return Local{}, fmt.Errorf("%q is no address of this machine; write an IP address, or only the port", host)
	}
	n, more, err := parsePorts(port, parseListenPort)
	if err != nil {
		return Local{}, err
	}
	return Local{network, joinHostPort(host, n), more}, nil
}

func parseListenPort(s string) (int, error) {
	if s == "0" {
		return 0, nil
	}
	return parsePort(s)
}

// String is the text form.
func (l Local) String() string {
	switch l.network {
	case "unix":
		return "unix:" + l.address
	case "stdio":
		return "-"
	case "udp":
		return l.address + rangeEnd(l.Port(), l.more) + "/udp"
	}
	return l.address + rangeEnd(l.Port(), l.more)
}

// Ports is how many it has: 1, or more in a range.
func (l Local) Ports() int { return 1 + l.more }

// At is the i-th port of a range by itself, from 0.
func (l Local) At(i int) Local {
	if i > 0 {
		host, _, _ := net.SplitHostPort(l.address)
		l.address = joinHostPort(host, l.Port()+i)
	}
	l.more = 0
	return l
}

// Auto reports whether the address is still to be chosen, Stdio whether it is "-".
// Neither can be listened on.
func (l Local) Auto() bool  { return l.network == "" }
func (l Local) Stdio() bool { return l.network == "stdio" }

// UDP reports whether only datagrams are wanted.
func (l Local) UDP() bool { return l.network == "udp" }

// ForUDP is the same address and port for datagrams.
func (l Local) ForUDP() Local { return Local{"udp", l.address, l.more} }

// Network and Address are what net.Listen takes.
func (l Local) Network() string { return l.network }
func (l Local) Address() string { return l.address }

// Port is the port, the first of a range, 0 for any free one and for what has none.
func (l Local) Port() int { return portOf(l.network, l.address) }

// LocalOf is the Local that a listener has, with the port that the system chose.
func LocalOf(ln net.Listener) Local {
	return Local{network: ln.Addr().Network(), address: ln.Addr().String()}
}

// A ListenError says that a local address is not available, and what would be.
type ListenError struct {
	Local Local
	Hint  string // empty if there is nothing to suggest
	Err   error
}

func (e *ListenError) Error() string {
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return fmt.Sprintf("local address %s is in use by another program", e.Local)
	}
	var sys syscall.Errno
	if errors.As(e.Err, &sys) {
		return fmt.Sprintf("cannot listen on %s: %v", e.Local, sys)
	}
	return fmt.Sprintf("cannot listen on %s: %v", e.Local, e.Err)
}

func (e *ListenError) Unwrap() error { return e.Err }

// Listen opens the local address, which is no range. A unix socket is made for this user alone; one left
// behind by a dead program is replaced, one in use or a file of another kind is not.
// The error is a *ListenError.
func (l Local) Listen() (net.Listener, error) {
	var ln net.Listener
	var err error
	switch l.network {
	case "tcp":
		ln, err = net.Listen(l.family(), l.address)
	case "unix":
		ln, err = listenUnix(l.address)
	default:
		err = fmt.Errorf("not an address to listen on")
	}
	if err != nil {
		return nil, &ListenError{Local: l, Hint: l.listenHint(err), Err: err}
	}
	return ln, nil
}

// ListenUDP opens a local address, which is no range, for datagrams. The error is a *ListenError.
func (l Local) ListenUDP() (*net.UDPConn, error) {
	l = l.ForUDP()
	c, err := net.ListenPacket(l.family(), l.address)
	if err != nil {
		return nil, &ListenError{Local: l, Hint: l.listenHint(err), Err: err}
	}
	return c.(*net.UDPConn), nil
}

// family is the network that net's functions take, which to them is [::] where an address is 0.0.0.0: what was asked for
// is told, and is the same for TCP and UDP.
func (l Local) family() string {
	if addr, err := netip.ParseAddrPort(l.address); err == nil && addr.Addr().Is4() {
		return l.network + "4"
	}
	return l.network
}

func (l Local) listenHint(err error) string {
	port := l.network == "tcp" || l.network == "udp"
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && port:
		return "name another port, or 0 for any free one"
	case errors.Is(err, os.ErrPermission) && port && l.Port() < 1024:
		return "ports below 1024 need privileges; name one from 1024 up, for example " + strconv.Itoa(l.Port()+8000)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "this machine does not have that address; 0.0.0.0 means all it has, [::] those of IPv6 too"
	case errors.Is(err, os.ErrNotExist):
		return "make the socket's folder first"
	}
	return ""
}

// probeTimeout is how long a unix socket may take to show that somebody listens on it:
// 1 s; a live one answers from the kernel's queue at once.
const probeTimeout = time.Second

func listenUnix(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("the file is there already and is no socket")
		}
		c, err := net.DialTimeout("unix", path, probeTimeout)
		if err == nil {
			c.Close()
			return nil, syscall.EADDRINUSE
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, syscall.EADDRINUSE // somebody's, or not ours to judge
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := listenClosed(path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}
