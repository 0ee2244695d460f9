//go:build linux

package itest

import (
	"strings"
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A machine among strangers is not announced to them, nor does it ask them anything, if it is told so.
func TestWhoForbidsTheLANTakesNoPartInMDNS(t *testing.T) {
	t.Parallel()
	w := beginWorld(t, lab.PortRestricted, lab.PortRestricted)
	w.env[0] = []string{"FWD_NO_LAN=1"}
	w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
	w.connect()
	takesPart := func(p *fwdtest.Peer) bool {
		groups, err := p.Host.Command(t.Context(), "cat", "/proc/net/igmp").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(groups), "FB0000E0") // 224.0.0.251
	}
	w.laptop.WaitStatus("mDNS", func(fwdtest.Status) bool { return takesPart(w.laptop) })
	if takesPart(w.nas) {
		t.Error("it listens to mDNS")
	}
}
