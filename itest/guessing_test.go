//go:build linux

package itest

import (
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

func TestWhoForbidsGuessingSendsNoForetoldPackets(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]int{"where the ports are random": 0, "where they are covered": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := beginWorld(t, lab.Symmetric, lab.PortRestricted)
			w.env[silent] = []string{"FWD_NO_GUESSING=1"}
			w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
			_, local := w.connect()
			s := w.laptop.WaitStatus("a reason for the relayed path", func(s fwdtest.Status) bool {
				return len(s.Forwards) == 1 && s.Forwards[0].Path != nil && s.Forwards[0].Path.Reason != ""
			})
			contains(t, s.Forwards[0].Path.Reason, "One NAT changes ports per destination")
			contains(t, s.Forwards[0].Path.Reason, "guessing ports is turned off "+[]string{"at nas-box", "here"}[silent])
			for _, way := range [][2]*fwdtest.Peer{{w.nas, w.laptop}, {w.laptop, w.nas}} {
				if n, _ := w.lab.Packets("udp", way[0].Host.PublicAddr(), way[1].Host.PublicAddr()); n > 40 {
					t.Errorf("%s sent %d packets, at most 40 are for simultaneous open", way[0].Host.Name(), n)
				}
			}
			w.transfer(local, fwdtest.Load{Up: 1000, Down: 1000})
		})
	}
}
