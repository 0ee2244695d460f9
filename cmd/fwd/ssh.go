package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

// ssh asks for nothing new: the system's ssh, its keys, its configuration, over
// `fwd connect NAME -` in the place of a TCP connection. The host key is
// remembered under NAME.fwd, by whatever path the machine is reached; so is it
// with the `Host *.fwd` recipe, which serves scp, rsync, git and ansible too.

func newSSH(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ssh DESTINATION",
		GroupID: groupForward,
		Short:   "ssh to a machine of the network",
		Long: `Run the system's ssh over fwd. NAME is a service that is an ssh server, or a machine,
whose service ssh is then meant. Everything else is ssh's own: options before NAME and
after, a command, keys, ssh_config. The host key is remembered by name. In another
network: fwd -n NETWORK ssh NAME; what follows "ssh" is ssh's, -n too.

With --print-config it prints lines for ~/.ssh/config, with which ssh, scp, sftp, rsync,
git and ansible reach NAME.fwd by themselves.`,
		Example: `fwd ssh nas
fwd ssh -L 8080:localhost:80 root@nas uptime
rsync -e 'fwd ssh' -a photos/ nas:photos/
fwd ssh --print-config >> ~/.ssh/config    # then: scp photo.jpg nas.fwd:`,
		Annotations: map[string]string{
			partArgs: "DESTINATION\t[USER@]NAME; NAME is a service, as \"fwd ls\" lists it, SERVICE.MACHINE, or a machine",
			partEnds: "2\tno destination\n255\tssh failed: the machine or the service was not reached\nany\tthat of the command there",
		},
		Args:               cobra.ArbitraryArgs,
		DisableFlagParsing: true, // they are ssh's
		ValidArgsFunction:  a.completeSSH,
	}
	cmd.Flags().Bool("print-config", false, "print the lines for ~/.ssh/config")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			switch args[0] {
			case "--help":
				printHelp(a.out.stdout, cmd)
				return nil
			case "--print-config":
				a.out.answer("%s", sshConfig(self(), daemon.HomeFolder(), a.network))
				return nil
			}
		}
		if len(args) > 0 && args[0] == "--print-config" {
			return usageError("fwd ssh --print-config", "fwd ssh --print-config does not take %q", args[1])
		}
		at := sshHost(args)
		if at < 0 {
			return usageError(usageLine(cmd), "fwd ssh needs a destination, [USER@]NAME")
		}
		ssh, err := exec.LookPath("ssh")
		if err != nil {
			return failed("install OpenSSH's client", "there is no ssh on this machine")
		}
		return replaceBy(ssh, a.sshArgs(self(), args, at))
	}
	return cmd
}

// withArgument are ssh's options that take one, by its manual.
const withArgument = "BbcDEeFIiJLlmOoPpQRSWw"

// sshHost finds the destination among ssh's words; -1 if there is none.
func sshHost(args []string) int {
	for i := 0; i < len(args); i++ {
		word := args[i]
		switch {
		case word == "--":
			if i+1 < len(args) {
				return i + 1
			}
			return -1
		case !strings.HasPrefix(word, "-") || word == "-":
			return i
		}
		for j := 1; j < len(word); j++ {
			if strings.IndexByte(withArgument, word[j]) >= 0 {
				if j == len(word)-1 {
					i++ // the next word is its argument
				}
				break
			}
		}
	}
	return -1
}

// sshArgs are the words for ssh, its name first, with the destination at args[at].
func (a *app) sshArgs(self string, args []string, at int) []string {
	user, name, ok := strings.Cut(args[at], "@")
	if !ok {
		user, name = "", args[at]
	} else if i := strings.LastIndexByte(args[at], '@'); i >= 0 {
		user, name = args[at][:i], args[at][i+1:] // a user's name may hold an @
	}
	host := strings.TrimSuffix(strings.ToLower(name), ".fwd") + ".fwd"
	alias := host
	if further := a.home.Network; further != "" {
		alias += "." + further // the nas of another network is another machine
	}
	words := []string{"ssh",
		"-o", "ProxyCommand=" + proxyCommand(self, a.network, host),
		"-o", "HostKeyAlias=" + alias,
		"-o", "CheckHostIP=no",
	}
	words = append(words, args[:at]...)
	if user != "" {
		host = user + "@" + host
	}
	words = append(words, host)
	return append(words, args[at+1:]...)
}

// proxyCommand is a line for the shell, with ssh's own % doubled.
func proxyCommand(self, network, host string) string {
	return commandIn(self, network) + " connect " + shellWord(host) + " -"
}

// commandIn is this program's name and which network -n said: the first one too, since
// the command may run where FWD_NETWORK chooses another.
func commandIn(self, network string) string {
	words := strings.ReplaceAll(shellWord(self), "%", "%%")
	if network != "" {
		words += " -n " + network
	}
	return words
}

// shellWord quotes for the shell that ssh gives a ProxyCommand to.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	if runtime.GOOS == "windows" {
		return `"` + s + `"` // there it is cmd.exe's line, and no file name has a quote
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// sshConfig is the recipe for ~/.ssh/config.
func sshConfig(self, home, network string) string {
	command := commandIn(self, network) + " connect %h -"
	if home != "" {
		command = "env " + strings.ReplaceAll(shellWord("FWD_HOME="+home), "%", "%%") + " " + command
	}
	return fmt.Sprintf(`# fwd: machines of the network, in ssh, scp, sftp, rsync, git, ansible: nas.fwd
Host *.fwd
    ProxyCommand %s
    CheckHostIP no`, command)
}

// self is this program's file.
func self() string {
	exe, err := os.Executable()
	if err != nil {
		return "fwd"
	}
	// A link stays what it is called by, so that an upgrade behind it is followed.
	if found, err := exec.LookPath("fwd"); err == nil {
		if whole, err := filepath.Abs(found); err == nil && sameFile(whole, exe) {
			return whole
		}
	}
	return exe
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// completeSSH completes [user@]name.
func (a *app) completeSSH(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if sshHost(args) >= 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	user := word[:strings.LastIndexByte(word, '@')+1]
	var list []string
	for _, name := range append(a.names().Services, a.names().Machines...) {
		list = append(list, user+name)
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}
