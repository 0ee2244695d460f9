//go:build linux

package itest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A machine comes home with another LAN address: its relay sees it at the port of before, while towards the peer the
// router still leads that port to the old address. Here the old address is a machine of its own, so that it is sure
// which of the two came first.
func TestPortThatARouterHoldsForAnotherDoesNotKeepTheRelay(t *testing.T) {
	t.Parallel()
	for name, homes := range map[string][]int{"the exposer's": {0}, "both": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := beginWorld(t, lab.PortRestricted, lab.PortRestricted, lab.Tracking(lab.Conntrack{UDP: 10 * time.Minute}))
			w.homes[1].BlockTCP() // which punches by itself
			for i := range w.env {
				w.env[i] = []string{"FWD_NO_GUESSING=1"}
			}
			w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
			at := [2]netip.AddrPort{w.seen(w.nas), w.seen(w.laptop)}
			for _, i := range homes {
				was, err := w.homes[i].Host("was").ListenUDP(fmt.Sprint(":", at[i].Port()))
				if err != nil {
					t.Fatal(err)
				}
				defer was.Close()
				if _, err := was.WriteToUDPAddrPort([]byte("mine"), at[1-i]); err != nil {
					t.Fatal(err)
				}
			}
			begun := time.Now()
			connect, local := w.connect()
			path := pathIs(connect, "direct")
			t.Logf("direct by %s after %v", path.Remote, time.Since(begun).Round(100*time.Millisecond))
			if strings.Contains(path.Remote, fmt.Sprintf("/udp/%d/", at[0].Port())) {
				t.Error("met at the port that the router held for another")
			}
			w.transfer(local, fwdtest.Load{Up: 1000, Down: 1000})
		})
	}
}

// seen is where the relay sees a peer's QUIC port.
func (w *world) seen(p *fwdtest.Peer) netip.AddrPort {
	w.t.Helper()
	for _, f := range w.lab.Flows() {
		if f.Proto == "udp" && f.Src.Addr() == p.Host.PublicAddr() && f.Dst == netip.AddrPortFrom(w.relay.Host.Addr(), 4001) {
			return f.Src
		}
	}
	w.t.Fatalf("%s has sent nothing to the relay", p.Host.Name())
	return netip.AddrPort{}
}
