// Package portmap has the router here open ports towards this machine, by PCP (RFC 6887) or its elder NAT-PMP
// (RFC 6886): one packet to the router's port 5351, one back.
//
//	router, err := portmap.Find(ctx, gateway, nonce)
//	keeper := portmap.NewKeeper(router, ports)
//	go keeper.Run(ctx, portsChanged, told)
//	external, ok := keeper.External(portmap.Port{Protocol: portmap.UDP, Number: 41822})
//
// UPnP is libp2p's. That knows NAT-PMP too, but not PCP, which is all that some routers speak; it tells of NAT-PMP only
// after nine seconds' search for UPnP, and takes for open the port that it asked for, where the router says which one
// it gave.
//
// IPv4 only: IPv6 is not translated. pcp.go and natpmp.go are the two wires, keeper.go renews.
package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// port is the router's, for both protocols.
	port = 5351
	// firstWait for an answer doubles tries times: 1.75 s in all. NAT-PMP begins so (RFC 6886 §3.1); PCP's 3 s are meant
	// for routers further away.
	firstWait = 250 * time.Millisecond
	tries     = 3
	// afterNATPMP is how much later the answer by PCP may come, which is preferred.
	afterNATPMP = 100 * time.Millisecond
	// life is how long a mapping is asked for: what RFC 6887 §15 has servers grant at least. A machine that goes away
	// leaves nothing behind for longer.
	life = 2 * time.Minute
	// largest is the most bytes of a PCP packet.
	largest = 1100
)

// ErrSilent is Find's when the router answers by neither protocol.
var ErrSilent = errors.New("the router speaks neither PCP nor NAT-PMP")

// Protocol is the IP protocol's number.
type Protocol byte

const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// Port is one of this machine's.
type Port struct {
	Protocol Protocol
	Number   uint16
}

func (p Port) String() string {
	return fmt.Sprintf("%s %d", map[Protocol]string{TCP: "TCP", UDP: "UDP"}[p.Protocol], p.Number)
}

// Nonce shows a PCP router that who renews a mapping is who made it. It has to be the same after a restart, or the
// router keeps the port closed to us until the old mapping has died.
type Nonce [12]byte

// Mapping is a port that the router has opened.
type Mapping struct {
	External netip.AddrPort
	Life     time.Duration
}

// Router is one that opens ports.
type Router struct {
	at    netip.AddrPort
	nonce Nonce
	pcp   bool
}

// Protocol is "PCP" or "NAT-PMP".
func (r *Router) Protocol() string {
	if r.pcp {
		return "PCP"
	}
	return "NAT-PMP"
}

// Addr is where it is asked.
func (r *Router) Addr() netip.Addr { return r.at.Addr() }

// Find asks the router what it speaks, in both at once.
func Find(ctx context.Context, router netip.Addr, nonce Nonce) (*Router, error) {
	return FindAt(ctx, netip.AddrPortFrom(router, port), nonce)
}

// FindAt is Find for one that listens at another port.
func FindAt(ctx context.Context, at netip.AddrPort, nonce Nonce) (*Router, error) {
	if !at.Addr().Is4() {
		return nil, ErrSilent
	}
	r := &Router{at: at, nonce: nonce}
	var failed error // an answer that helps nobody
	older := false
	err := exchange(ctx, at, func(own netip.Addr) [][]byte { return [][]byte{announcement(own), addressRequest} },
		func(b []byte) verdict {
			switch {
			case isPCP(b):
				r.pcp = true
				return enough
			case !older:
				_, err := parseAddress(b)
				if older = err == nil; older {
					return soon
				}
				if !errors.Is(err, errMalformed) {
					failed = err
				}
			}
			return more
		})
	switch {
	case r.pcp || older:
		return r, nil
	case failed != nil:
		return nil, failed
	case errors.Is(err, context.Canceled):
		return nil, err
	}
	return nil, ErrSilent
}

// Map has the router open a port, or keep it open; preferred is the external one that was given last, 0: any. An
// external address that is invalid means that the router has none now.
func (r *Router) Map(ctx context.Context, p Port, preferred netip.AddrPort) (Mapping, error) {
	if preferred.Port() == 0 {
		preferred = netip.AddrPortFrom(netip.IPv4Unspecified(), p.Number)
	}
	m, err := r.ask(ctx, p, preferred, life)
	if err != nil {
		return Mapping{}, fmt.Errorf("%s by %s at the router %s: %w", p, r.Protocol(), r.at.Addr(), err)
	}
	return m, nil
}

// Unmap gives a port back.
func (r *Router) Unmap(ctx context.Context, p Port) error {
	_, err := r.ask(ctx, p, netip.AddrPortFrom(netip.IPv4Unspecified(), 0), 0)
	return err
}

func (r *Router) ask(ctx context.Context, p Port, preferred netip.AddrPort, life time.Duration) (m Mapping, err error) {
	if r.pcp {
		var answer error
		err := exchange(ctx, r.at, func(own netip.Addr) [][]byte { return [][]byte{mapRequest(own, r.nonce, p, preferred, life)} },
			func(b []byte) verdict {
				m, answer = parseMap(b, r.nonce, p)
				return unlessMalformed(answer)
			})
		return m, errors.Join(err, answer)
	}
	var addr netip.Addr
	var answer error
	if life == 0 {
		return m, exchange(ctx, r.at, func(netip.Addr) [][]byte { return [][]byte{olderRequest(p, 0, 0)} }, func([]byte) verdict { return enough })
	}
	err = exchange(ctx, r.at, func(netip.Addr) [][]byte { return [][]byte{addressRequest} }, func(b []byte) verdict {
		addr, answer = parseAddress(b)
		return unlessMalformed(answer)
	})
	if err = errors.Join(err, answer); err != nil {
		return m, err
	}
	err = exchange(ctx, r.at, func(netip.Addr) [][]byte { return [][]byte{olderRequest(p, preferred.Port(), life)} }, func(b []byte) verdict {
		m, answer = parseOlderMap(b, p)
		return unlessMalformed(answer)
	})
	m.External = netip.AddrPortFrom(addr, m.External.Port())
	return m, errors.Join(err, answer)
}

// errMalformed is an answer that is none to our question.
var errMalformed = errors.New("not an answer")

// verdict says what an answer is worth.
type verdict int

const (
	more   verdict = iota // nothing; wait on
	soon                  // something; wait a little for better
	enough                // all
)

func unlessMalformed(err error) verdict {
	if errors.Is(err, errMalformed) {
		return more
	}
	return enough
}

// exchange sends packets to the router, again and again, until answers are enough.
func exchange(ctx context.Context, to netip.AddrPort, packets func(own netip.Addr) [][]byte, take func([]byte) verdict) error {
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	own := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	b := make([]byte, largest+1)
	wait := firstWait
	for range tries {
		for _, p := range packets(own) {
			if _, err := c.Write(p); err != nil {
				return cause(ctx, err)
			}
		}
		c.SetReadDeadline(time.Now().Add(wait))
		wait *= 2
		worth := more
		for {
			n, err := c.Read(b)
			if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
				break
			}
			if err != nil {
				return cause(ctx, err) // refused: nobody listens
			}
			if n > largest {
				continue
			}
			switch take(b[:n]) {
			case enough:
				return nil
			case soon:
				worth = soon
				c.SetReadDeadline(time.Now().Add(afterNATPMP))
			}
		}
		if worth == soon {
			return nil
		}
	}
	return errors.New("no answer")
}

// cause is why a socket failed: the context's end closes it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
