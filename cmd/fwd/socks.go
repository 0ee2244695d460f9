package main

import (
	"net"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newSocks(a *app) *cobra.Command {
	var req daemon.SocksRequest
	cmd := &cobra.Command{
		Use:     "socks [LOCAL]",
		GroupID: groupForward,
		Short:   "reach all services by name through one local port",
		Long: `Accept programs that speak SOCKS 5 at LOCAL, and take each to the service that it
names, until this command ends; Ctrl-C ends it and its connections, and nothing else.

SERVICE.fwd and SERVICE.MACHINE.fwd are that service, whatever port the program says.
MACHINE.fwd:PORT is the machine's service whose target has that port. Everything else is
refused, so this is no way to the internet. The program has to leave the looking up of
names to the proxy: curl's --socks5-hostname, socks5h:// as many write it, "proxy DNS"
in a browser. UDP is not carried so.`,
		Example: `fwd socks                       # then:
curl --socks5-hostname localhost:1080 http://web.fwd/
ssh -o ProxyCommand='nc -X 5 -x localhost:1080 %h %p' nas-box.fwd
fwd socks 1080 --keep
fwd socks unix:/tmp/fwd-socks.sock`,
		Annotations: map[string]string{
			partArgs:  "LOCAL\t1080, addr:1080 or unix:/path; default " + daemon.DefaultSocks + " on loopback",
			partExits: "4 7",
		},
		Args: words(0, 1),
	}
	cmd.Flags().BoolVar(&req.Keep, "keep", false, "\"fwd up\" and the service do it too, from now on; if one runs, it takes over")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			local, err := wholePath(args[0])
			if err != nil {
				return err
			}
			req.Local = local
		}
		told := false
		return a.hold(cmd.Context(), func() any { return req }, func(e daemon.Event) {
			switch {
			case e.Event == "listening":
				again := told
				told, req.Local, req.Keep = true, e.Local, false
				a.listeningSocks(e, again)
			default:
				a.tell(e)
			}
		})
	}
	return cmd
}

func (a *app) listeningSocks(e daemon.Event, again bool) {
	switch {
	case a.out.json:
		a.out.object(e)
	case again:
		a.out.story("listening on %s again", e.Local)
	default:
		a.out.answer("listening on %s", e.Local)
		host, port, others := reached(e.Local)
		if host == "" {
			return
		}
		if others {
			a.out.story("warning: whoever reaches this machine at that address can use every service that this machine may use")
		}
		a.out.story("use it: curl --socks5-hostname %s http://NAME.fwd/", net.JoinHostPort(host, port))
	}
}
