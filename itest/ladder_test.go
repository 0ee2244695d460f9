//go:build linux

package itest

import (
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

func TestSymmetricAndPortRestrictedHomesMeetDirectly(t *testing.T) {
	t.Parallel()
	for name, kinds := range map[string][2]lab.NAT{
		"the exposer is symmetric":   {lab.Symmetric, lab.PortRestricted},
		"the connector is symmetric": {lab.PortRestricted, lab.Symmetric},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kinds[0], kinds[1])
			connect, local := w.connect()
			w.transfer(local, fwdtest.Load{Up: 1000, Down: 1000}) // at once, by the relay
			path := pathIs(connect, "direct")
			if path.Transport != "quic-v1" {
				t.Errorf("direct by %q, want quic-v1", path.Transport)
			}
			var sent [2]uint64
			for i, from := range []*fwdtest.Peer{w.nas, w.laptop} {
				to := []*fwdtest.Peer{w.laptop, w.nas}[i]
				sent[i], _ = w.lab.Packets("udp", from.Host.PublicAddr(), to.Host.PublicAddr())
			}
			if sent[0] > maxPackets || sent[1] > maxPackets {
				t.Errorf("%d and %d packets between the homes, at most %d are allowed", sent[0], sent[1], maxPackets)
			}
			w.untilCarried(local, load, func(got ways) bool { return got.udp >= uint64(load.Up+load.Down) && got.relayed < mib })
			for i, p := range []*fwdtest.Peer{w.nas, w.laptop} {
				want := map[lab.NAT]string{lab.Symmetric: "endpoint-dependent", lab.PortRestricted: "endpoint-independent"}[kinds[i]]
				if n := p.Status().NAT; n.UDP != want || n.Filtering != "address-and-port-dependent" {
					t.Errorf("%s tells %+v of its %v NAT", p.Host.Name(), n, kinds[i])
				}
			}
		})
	}
}

func TestReasonsNameTheMachineAndTheMend(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Symmetric, lab.Symmetric)
	w.connect()
	s := w.laptop.WaitStatus("a reason for the relayed path", func(s fwdtest.Status) bool {
		return len(s.Forwards) == 1 && s.Forwards[0].Path != nil && s.Forwards[0].Path.Reason != ""
	})
	reason := s.Forwards[0].Path.Reason
	contains(t, reason, "Both NATs change ports per destination")
	contains(t, reason, "at nas-box a random port")
	contains(t, reason, "the ports that may be forwarded; nothing came back")
	contains(t, reason, "Would help: turn on UPnP")
}
