package node

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/portmap"
)

// startingRouter speaks NAT-PMP on loopback. Until it is ready it has no address and says so: network failure.
type startingRouter struct {
	at    netip.AddrPort
	ready atomic.Bool
	asked atomic.Int32 // times that it said so
}

func newStartingRouter(t *testing.T) *startingRouter {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &startingRouter{at: c.LocalAddr().(*net.UDPAddr).AddrPort()}
	over := make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, 1<<10)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if a := r.answer(b[:n]); a != nil {
				c.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-over })
	return r
}

// answer is RFC 6886 §3.
func (r *startingRouter) answer(b []byte) []byte {
	if b[0] != 0 {
		return nil // PCP
	}
	head := []byte{0, 0x80 | b[1], 0, 0, 0, 0, 0, 1}
	switch {
	case !r.ready.Load():
		r.asked.Add(1)
		head[3] = 3
		return append(head, 0, 0, 0, 0)
	case b[1] == 0:
		return append(head, 7, 0, 0, 1)
	}
	return append(append(head, b[4:6]...), 0x75, 0x30, 0, 0, 0, 120)
}

// noUPnP finds nothing.
type noUPnP struct{}

func (noUPnP) GetMapping(ma.Multiaddr) ma.Multiaddr { return nil }
func (noUPnP) HasDiscoveredNAT() bool               { return false }
func (noUPnP) Close() error                         { return nil }

// listener is a network that listens at one address.
type listener struct {
	network.Network
	at ma.Multiaddr
}

func (l listener) Notify(network.Notifiee)         {}
func (l listener) ListenAddresses() []ma.Multiaddr { return []ma.Multiaddr{l.at} }

func TestPortsOfARouterThatIsStartingAreOpenedSoon(t *testing.T) {
	for name, look := range map[string]bool{"a relay is back, long after": true, "it has just been started": false} {
		t.Run(name, func(t *testing.T) {
			router := newStartingRouter(t)
			synctest.Test(t, func(t *testing.T) {
				// The router's answers take real time, in which the bubble's stands still.
				opened := make(chan struct{}, 1)
				at := ma.StringCast("/ip4/192.168.1.2/udp/4001/quic-v1")
				began := time.Now()
				m := newMapper(listener{at: at}, mapperConfig{
					find: func(ctx context.Context) (*portmap.Router, error) {
						return portmap.FindAt(ctx, router.at, portmap.Nonce(bytes.Repeat([]byte{1}, 12)))
					},
					search:  func(network.Network) basichost.NATManager { return noUPnP{} },
					changed: func() { opened <- struct{}{} },
					log:     slog.New(slog.DiscardHandler),
				})
				defer m.Close()
				if look {
					time.Sleep(21 * time.Minute)
					began = time.Now()
					router.ready.Store(true)
					m.look()
				} else {
					time.Sleep(time.Minute)
					router.ready.Store(true)
				}
				<-opened
				if router.asked.Load() == 0 {
					t.Error("it was not asked while it started")
				}
				if got := m.GetMapping(at); got == nil || got.String() != "/ip4/7.0.0.1/udp/30000/quic-v1" {
					t.Errorf("open: %v", got)
				}
				if took := time.Since(began); took > 2*time.Minute || look && took > 5*time.Second {
					t.Errorf("after %v", took)
				}
			})
		})
	}
}
