package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newConnect(a *app) *cobra.Command {
	var req daemon.ConnectRequest
	cmd := &cobra.Command{
		Use:     "connect NAME [LOCAL]",
		GroupID: groupForward,
		Short:   "make another machine's service appear on this one",
		Long: `Accept connections at LOCAL and carry each to the service NAME until this command
ends; Ctrl-C ends it and its connections, and nothing else.

"listening on …" is printed as soon as connections are accepted. A machine that is
offline is waited for, unless --timeout says how long. With "-" one connection is
carried over standard input and output, as ssh wants a ProxyCommand; a machine's name
then means its service ssh. Several services are NAME:LOCAL each.

A port alone is for programs of this machine. 0.0.0.0:2222 takes connections at each of
its IPv4 addresses, [::]:2222 at those of IPv6, too.

All connections to a machine share its path: --path direct or relay holds for each of
them, other forwards' too, while this one stands. A second forward to that machine with
the opposite --path is refused.

A service may be a range of ports; LOCAL is then a range of the same length, or less for
the first of them. A service for UDP has its datagrams carried, each as a whole and none
twice; what the path does not take in time is dropped. Where the name is there for TCP
and UDP, both appear.`,
		Example: `fwd connect nas 2222            # then: ssh -p 2222 localhost
fwd connect web                 # the target's own port, or a free one
fwd connect nas:2222 web:8080 db:unix:/tmp/db.sock
fwd connect web 8000-8010       # a service that is a range of ports
fwd connect wg 51820            # UDP, if that is what the service is
fwd connect nas 0.0.0.0:8999    # for others too; the exposer must allow this machine
ssh -o ProxyCommand='fwd connect %h -' nas.fwd`,
		Annotations: map[string]string{
			partArgs: "NAME\tservice, as \"fwd ls\" lists it, or SERVICE.MACHINE\n" +
				"LOCAL\t2222, addr:2222, 8000-8010, 2222/udp, unix:/path or -; default the target's own port, or a free one",
			partExits: "3 4 5 6 7",
		},
		Args: oneOrSeveral,
	}
	cmd.Flags().StringVar(&req.Path, "path", "", "go by this `WAY`: auto, direct or relay; default auto")
	cmd.Flags().BoolVar(&req.Keep, "keep", false, "\"fwd up\" and the service do it too, from now on; if one runs, it takes over")
	timeout := spanVar(cmd, "timeout", "give up a machine that is not reached in this time; default never")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Timeout, req.Tell = time.Duration(*timeout), a.out.json
		if strings.Contains(args[0], ":") {
			return a.connectSeveral(cmd.Context(), req, args)
		}
		req.Name = args[0]
		if len(args) == 2 {
			local, err := wholePath(args[1])
			if err != nil {
				return err
			}
			req.Local = local
		}
		if req.Local == "-" && req.Keep {
			return usageError("fwd connect "+req.Name+" LOCAL --keep", "--keep: standard input and output do not outlive the command")
		}
		if req.Local == "-" {
			return a.connectStdio(cmd.Context(), req)
		}
		return a.connect(cmd.Context(), req, "")
	}
	return cmd
}

// connect holds one forward; among several, label is its name.
func (a *app) connect(ctx context.Context, req daemon.ConnectRequest, label string) error {
	if label != "" {
		label += ": "
	}
	told := map[string]bool{} // a service for TCP and UDP listens twice
	keep := req.Keep
	err := a.hold(ctx, func() any { return req }, func(e daemon.Event) {
		switch {
		case e.Event == "listening":
			again := told[e.Local]
			told[e.Local] = true
			if !strings.HasSuffix(e.Local, "/udp") || len(told) == 1 {
				req.Local = e.Local // a repetition wants the same; without "/udp" it means both
			}
			req.Keep = false
			a.listening(e, again, label != "")
		case a.out.json:
			a.tell(e)
		case e.Event == "path" && e.Path == nil:
			a.out.stage(label + "no path to " + req.Name + " now; waiting for one")
		case e.Event == "path":
			a.out.stage(label + pathWords(e.Path))
		default:
			a.tell(e)
		}
	})
	if err == nil && !keep {
		a.out.story("%sended by another command", label)
	}
	return err
}

func (a *app) listening(e daemon.Event, again, several bool) {
	switch {
	case a.out.json:
		a.out.object(e)
	case again:
		a.out.story("listening on %s again", e.Local)
	default:
		if several {
			a.out.answer("listening on %s for %s", e.Local, e.Service)
		} else {
			a.out.answer("listening on %s", e.Local)
		}
		if _, _, others := reached(e.Local); others {
			a.out.story("note: whoever reaches this machine at that address can use it")
		}
		if how := usage(e.Service, e.Port, e.Local); how != "" {
			a.out.story("use it: %s", how)
		}
	}
}

// reached is where this machine's programs reach what listens at local, and whether other machines may, too. An empty
// host: it is no port.
func reached(local string) (host, port string, others bool) {
	host, port, err := net.SplitHostPort(local)
	if err != nil || strings.HasPrefix(local, "unix:") {
		return "", "", false
	}
	ip := net.ParseIP(host)
	if ip.IsLoopback() || ip.IsUnspecified() {
		return "localhost", port, ip.IsUnspecified()
	}
	return host, port, host != "localhost"
}

// usage is what most people type to use a forward: the target's port tells the kind.
// Empty where there is nothing that everybody would.
func usage(service string, port int, local string) string {
	local, udp := strings.CutSuffix(local, "/udp")
	host, lport, _ := reached(local)
	if host == "" || strings.Contains(lport, "-") {
		return ""
	}
	// Browsers take every name under localhost for this machine (RFC 6761, 6.3), so
	// that cookies of several services stay apart.
	site := strings.ReplaceAll(service, ".", "-") + ".localhost:" + lport
	if host != "localhost" {
		site = net.JoinHostPort(host, lport)
	}
	if udp {
		if port == 53 {
			return fmt.Sprintf("dig -p %s @%s NAME", lport, host)
		}
		return ""
	}
	switch port {
	case 22:
		return fmt.Sprintf("ssh -p %s %s", lport, host)
	case 80, 3000, 5000, 5173, 8000, 8080, 8888:
		return "http://" + site
	case 443, 8443:
		return "https://" + site
	case 3306:
		return fmt.Sprintf("mysql -h 127.0.0.1 -P %s", lport)
	case 5432:
		return fmt.Sprintf("psql -h %s -p %s", host, lport)
	case 5900:
		return "vnc://" + net.JoinHostPort(host, lport)
	case 6379:
		return fmt.Sprintf("redis-cli -h %s -p %s", host, lport)
	}
	return ""
}

// connectStdio carries standard input and output as one connection. It is silent but
// for errors: ssh shows a ProxyCommand's stderr in the middle of its own.
func (a *app) connectStdio(ctx context.Context, req daemon.ConnectRequest) error {
	c, err := daemon.Start(ctx, a.home)
	if err != nil {
		return err
	}
	conn, err := c.Stream(ctx, req, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	go func() { // ends with stdin, or with the process
		_, err := io.Copy(conn, a.stdin)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
		}
	}()
	var why *daemon.Failure
	if _, err := io.Copy(a.out.stdout, conn); errors.As(err, &why) {
		return why
	} else if err != nil && !errors.Is(err, os.ErrClosed) {
		return failed("", "connection to %s broke: %v", req.Name, err)
	}
	return ctx.Err()
}

func newDisconnect(a *app) *cobra.Command {
	var session string
	cmd := &cobra.Command{
		Use:     "disconnect [LOCAL]",
		GroupID: groupForward,
		Short:   "end a connect, from any terminal",
		Long:    `End a connect from any terminal. One made with --keep is also forgotten.`,
		Annotations: map[string]string{
			partArgs:  "LOCAL\twhere it listens, as \"fwd status\" shows it, or only its port",
			partExits: "3 8",
		},
		Args: words(0, 1),
	}
	cmd.Flags().StringVar(&session, "session", "", "end this one connection: the `ID` that \"fwd status\" shows")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (session != "") == (len(args) == 1) {
			return usageError(usageLine(cmd), "either LOCAL or --session ID")
		}
		if session != "" {
			return a.askRunning(cmd.Context(), daemon.DisconnectRequest{Session: session}, a.tell)
		}
		local, err := wholePath(args[0])
		if err != nil {
			return err
		}
		return a.endWish(cmd.Context(), daemon.DisconnectRequest{Local: local})
	}
	return cmd
}
