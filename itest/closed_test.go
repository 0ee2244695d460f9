//go:build linux

package itest

import (
	"strings"
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A network that lets out nothing but TCP to port 443.
func TestNetworksThatLetOutTheWebAloneWorkOverTheRelay(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	w := &world{t: t, lab: l, homes: [2]*lab.Home{l.Home("a", lab.PortRestricted, slow()), l.Home("b", lab.PortRestricted, slow())}}
	w.homes[1].OnlyTCP(443)
	w.relay = fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	w.relaying = w.relay.Start("relay", "--as", "relay", "--listen", "4001", "--listen", "443/wss")
	addrs := strings.Join(w.relaying.Wait("relay").Addrs, " ")
	contains(t, addrs, "/ip4/7.0.0.10/tcp/443/tls/ws")
	if strings.Contains(addrs, "udp/443") || strings.HasSuffix(addrs, "/tcp/443") || strings.Contains(addrs, "/tcp/443 ") {
		t.Errorf("443/wss announces more than WebSocket: %s", addrs)
	}
	w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
	connect, local := w.connect()
	w.transfer(local, load)
	pathIs(connect, "relay")

	d := examine(t, w.laptop)
	for check, level := range map[string]string{"relay-udp": "wrong", "relay-tcp": "wrong", "relay-wss": "ok", "nat": "wrong"} {
		if f := d.find(check, ""); f.Level != level {
			t.Errorf("%+v, want %s", f, level)
		}
	}
}
