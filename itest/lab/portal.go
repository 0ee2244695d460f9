//go:build linux

package lab

import (
	"net"
	"net/http"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Portal makes the home one of those networks that want a login first: from now on nothing gets out, and whoever asks
// any web server by plain HTTP is sent to login.
func (h *Home) Portal(login string) {
	h.lab.t.Helper()
	var web net.Listener
	var err error
	h.node.visit(func() { web, err = net.Listen("tcp4", h.lan.Addr().String()+":8080") })
	h.lab.must(err, "portal")
	server := &http.Server{Handler: http.RedirectHandler(login, http.StatusFound)}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(web) }()
	h.lab.t.Cleanup(func() { server.Close(); <-served })
	h.lab.must(h.node.install(nftables.TableFamilyIPv4, "portal", func(r *ruleset) {
		before := r.chain(nftables.ChainTypeNAT, nftables.ChainHookPrerouting, atDNAT-1, accept)
		before.rule(in("lan"), l4(unix.IPPROTO_TCP), dport(80), term{
			value(0, h.lan.Addr().AsSlice()), value(1, binaryutil.BigEndian.PutUint16(8080)),
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0), RegProtoMin: reg(1)},
		})
	}), "portal")
	h.lab.must(h.node.wall("portal", wall{forwarded, in("lan")}), "portal")
}
