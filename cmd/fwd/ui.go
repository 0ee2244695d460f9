package main

import (
	"crypto/rand"
	"net/url"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newUI(a *app) *cobra.Command {
	var req daemon.PageRequest
	var open bool
	cmd := &cobra.Command{
		Use:     "ui",
		GroupID: groupForward,
		Short:   "show status as a page in the browser of this machine",
		Long: `Serve a page on loopback that shows the network as a map, with the paths drawn as
direct or relayed, and services, connections, throughput, machines and invites, live,
until this command ends. It prints the page's address, which is secret: whoever on this
machine knows it sees the page.

The page changes nothing unless --manage allows it; then it has forms to allow, deny,
revoke and expose.`,
		Example:     "fwd ui\nfwd ui --open --manage",
		Annotations: map[string]string{partExits: "7"},
		Args:        noArgs,
	}
	cmd.Flags().BoolVar(&req.Manage, "manage", false, "let the page allow, deny, revoke and expose")
	cmd.Flags().IntVar(&req.Port, "port", 0, "the `PORT` of loopback; default a free one")
	cmd.Flags().BoolVar(&open, "open", false, "open it in the browser; for a moment other users of this machine may see the address")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if req.Port < 0 || req.Port > 65535 {
			return usageError(usageLine(cmd), "--port %d: ports end at 65535", req.Port)
		}
		// Ours, so that the page in the browser goes on when the daemon is started again.
		req.Token = strings.ToLower(rand.Text())
		return a.hold(cmd.Context(), func() any { return req }, func(e daemon.Event) {
			if e.Event != "page" || a.out.json {
				a.tell(e)
				return
			}
			u, err := url.Parse(e.URL)
			if err != nil {
				a.out.err = err
				return
			}
			again := strconv.Itoa(req.Port) == u.Port()
			req.Port, _ = strconv.Atoi(u.Port())
			if again && !cmd.Flags().Changed("port") {
				return // it is where it was
			}
			a.out.answer("%s", e.URL)
			if req.Manage {
				a.out.story("who knows this address may change what this machine exposes and to whom; Ctrl-C ends it")
			} else {
				a.out.story("the page only shows; Ctrl-C ends it")
			}
			if open {
				if err := browse(e.URL); err != nil {
					a.out.story("no browser was opened: %v", err)
				}
			}
		})
	}
	return cmd
}

// browse has the system open an address.
func browse(address string) error {
	switch runtime.GOOS {
	case "darwin":
		return exec.Command("open", address).Run()
	case "windows":
		return exec.Command("rundll32", "url.dll,FileProtocolHandler", address).Run()
	}
	return exec.Command("xdg-open", address).Run()
}
