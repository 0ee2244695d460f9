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
carried over standard input and output, as ssh wants a ProxyCommand.`,
		Example: `fwd connect nas 2222            # then: ssh -p 2222 localhost
fwd connect web                 # the target's own port, or a free one
fwd connect nas 0.0.0.0:8999    # for others too; the exposer must allow this machine
ssh -o ProxyCommand='fwd connect %h -' nas.fwd`,
		Annotations: map[string]string{
			partArgs: "NAME\tservice, as \"fwd ls\" lists it, or SERVICE.MACHINE\n" +
				"LOCAL\t2222, addr:2222, unix:/path or -; default the target's own port, or a free one",
			partExits: "3 4 5 6 7",
		},
		Args:              words(1, 2),
		ValidArgsFunction: a.completeServices,
	}
	cmd.Flags().StringVar(&req.Path, "path", "", "go by this `WAY`: auto, direct or relay; default auto")
	timeout := spanVar(cmd, "timeout", "give up a machine that is not reached in this time; default never")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Name, req.Timeout = args[0], time.Duration(*timeout)
		if len(args) == 2 {
			local, err := wholePath(args[1])
			if err != nil {
				return err
			}
			req.Local = local
		}
		if req.Local == "-" {
			return a.connectStdio(cmd.Context(), req)
		}
		return a.connect(cmd.Context(), req)
	}
	return cmd
}

func (a *app) connect(ctx context.Context, req daemon.ConnectRequest) error {
	told := false
	return a.hold(ctx, func() any { return req }, func(e daemon.Event) {
		switch {
		case e.Event == "listening":
			again := told
			told = true
			req.Local = e.Local // a repetition wants the same
			a.listening(e, again)
		case a.out.json:
			a.tell(e)
		case e.Event == "path" && e.Path == nil:
			a.out.stage("no path to " + req.Name + " now; waiting for one")
		case e.Event == "path":
			a.out.stage(pathWords(e.Path))
		default:
			a.tell(e)
		}
	})
}

func (a *app) listening(e daemon.Event, again bool) {
	switch {
	case a.out.json:
		a.out.object(e)
	case again:
		a.out.story("listening on %s again", e.Local)
	default:
		a.out.answer("listening on %s", e.Local)
		if how := usage(e.Service, e.Port, e.Local); how != "" {
			a.out.story("use it: %s", how)
		}
	}
}

// usage is what most people type to use a forward: the target's port tells the kind.
// Empty where there is nothing that everybody would.
func usage(service string, port int, local string) string {
	host, lport, err := net.SplitHostPort(local)
	if err != nil || strings.HasPrefix(local, "unix:") {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		host = "localhost"
	}
	// Browsers take every name under localhost for this machine (RFC 6761, 6.3), so
	// that cookies of several services stay apart.
	site := strings.ReplaceAll(service, ".", "-") + ".localhost:" + lport
	if host != "localhost" {
		site = net.JoinHostPort(host, lport)
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
	if _, err := io.Copy(a.out.stdout, conn); err != nil && !errors.Is(err, os.ErrClosed) {
		return failed("", "connection to %s broke: %v", req.Name, err)
	}
	return ctx.Err()
}

func newDisconnect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "disconnect LOCAL",
		GroupID: groupForward,
		Short:   "end a connect, from any terminal",
		Annotations: map[string]string{
			partArgs:  "LOCAL\twhere it listens, as \"fwd status\" shows it, or only its port",
			partExits: "3 8",
		},
		Args: words(1, 1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		local, err := wholePath(args[0])
		if err != nil {
			return err
		}
		return a.askRunning(cmd.Context(), daemon.DisconnectRequest{Local: local}, a.tell)
	}
	return cmd
}

// completeServices completes a service's name, if a daemon runs to ask.
func (a *app) completeServices(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second) // a person waits
	defer cancel()
	var names []string
	a.askRunning(ctx, daemon.LsRequest{}, listed(a, "ls", func(services []daemon.LsEntry) {
		for _, s := range services {
			names = append(names, s.Service)
		}
	}))
	return names, cobra.ShellCompDirectiveNoFileComp
}
