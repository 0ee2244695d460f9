//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Command is exec.CommandContext for a program on the router, as Host.Command.
func (r *Router) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &Cmd{cmd, r.node}
}

// Miniupnpd runs the real miniupnpd on a home's router: the program that most of them run. It must have been built for
// nftables; where there is none, ErrNoMiniupnpd. It speaks UPnP and, with packets, NAT-PMP and PCP.
func (h *Home) Miniupnpd(dir string, packets bool) error {
	program := ""
	for _, where := range []string{"miniupnpd", "/usr/sbin/miniupnpd", "/usr/local/sbin/miniupnpd"} {
		if p, err := exec.LookPath(where); err == nil && program == "" {
			program = p
		}
	}
	if program == "" {
		return ErrNoMiniupnpd
	}
	if linked, err := os.ReadFile(program); err != nil || !strings.Contains(string(linked), "libnftnl") {
		return ErrNoMiniupnpd
	}
	if err := h.miniupnpdChains(); err != nil {
		return err
	}
	conf := filepath.Join(dir, "miniupnpd.conf")
	text := fmt.Sprintf("ext_ifname=wan\nlistening_ip=lan0\nhttp_port=5000\nenable_natpmp=%s\nenable_upnp=yes\nsecure_mode=yes\n"+
		"min_lifetime=60\nmax_lifetime=86400\nuuid=fc4ec57e-b051-11db-88f8-0060085db3f6\nforce_igd_desc_v1=yes\n"+
		"upnp_table_name=%s\nupnp_nat_table_name=%[2]s\nallow 1024-65535 %s 1024-65535\n",
		map[bool]string{true: "yes", false: "no"}[packets], miniupnpdTable, h.inside)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := h.Command(context.Background(), program, "-d", "-f", conf, "-P", filepath.Join(dir, "miniupnpd.pid"))
	log := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	h.lab.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if h.lab.t.Failed() {
			h.lab.t.Logf("miniupnpd:\n%s", log)
		}
	})
	return nil
}

// ErrNoMiniupnpd is Miniupnpd's where it is not installed.
var ErrNoMiniupnpd = errors.New("miniupnpd with nftables is not installed (apt-get install miniupnpd-nftables)")

const miniupnpdTable = "miniupnpd"

// miniupnpdChains makes what its package's script makes by nft(8).
func (h *Home) miniupnpdChains() error {
	return h.node.install(nftables.TableFamilyINet, miniupnpdTable, func(r *ruleset) {
		jump := func(from *chain, to string) {
			r.conn.AddChain(&nftables.Chain{Name: to, Table: r.table})
			from.rule(term{&expr.Verdict{Kind: expr.VerdictJump, Chain: to}})
		}
		jump(r.chain(nftables.ChainTypeFilter, nftables.ChainHookForward, atFilter-1, accept), "miniupnpd")
		jump(r.chain(nftables.ChainTypeNAT, nftables.ChainHookPrerouting, atDNAT-1, accept), "prerouting_miniupnpd")
		jump(r.chain(nftables.ChainTypeNAT, nftables.ChainHookPostrouting, atSNAT-1, accept), "postrouting_miniupnpd")
	})
}
