package main

import (
	"context"
	"encoding/json"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newOwner(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "owner",
		GroupID: groupNetwork,
		Short:   "back up, restore and hand over the network's key",
		Long: `The network's key signs the roster; the machine that has it owns the network. Without
it everything goes on, but nobody can be invited or revoked any more. So keep a backup.`,
		Args: subcommands,
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(newOwnerExport(a), newOwnerImport(a), newOwnerMove(a), newOwnerSign(a))
	return cmd
}

const passphraseEnv = "FWD_PASSPHRASE\tthe passphrase"

func newOwnerExport(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "print the network's key, sealed with a passphrase",
		Long: `Print the network's key, sealed with a passphrase, as text. The passphrase is asked
for, or read from --passphrase-file or FWD_PASSPHRASE.`,
		Example:     "fwd owner export > home.key",
		Annotations: map[string]string{partEnv: passphraseEnv, partExits: "4"},
		Args:        noArgs,
	}
	cmd.Flags().StringVar(&file, "passphrase-file", "", "read the passphrase from `FILE`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		passphrase, err := a.passphrase(cmd.Context(), file, true)
		if err != nil {
			return err
		}
		return a.ask(cmd.Context(), daemon.OwnerExportRequest{Passphrase: passphrase}, func(e daemon.Event) {
			var backup []byte
			if e.Event != "result" || json.Unmarshal(e.Result, &backup) != nil {
				a.tell(e)
				return
			}
			if a.out.json {
				a.out.object(exported{Backup: string(backup)})
				return
			}
			a.out.answer("%s", strings.TrimSpace(string(backup)))
			a.out.story("who has this and the passphrase owns the network; to restore it: fwd owner import FILE")
		})
	}
	return cmd
}

// exported is what `fwd owner export --json` prints.
type exported struct {
	Backup string `json:"backup"`
}

// backupIn is the backup in what export printed: itself, or in JSON. A bare JSON string, of the backup in base64, is what
// export --json printed once; such a file may be all that is left of a network's key.
func backupIn(text string) []byte {
	var printed exported
	if json.Unmarshal([]byte(text), &printed) == nil && printed.Backup != "" {
		return []byte(printed.Backup)
	}
	var once []byte
	if json.Unmarshal([]byte(text), &once) == nil {
		return once
	}
	return []byte(text)
}

func newOwnerImport(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "import [FILE]",
		Short: "make this machine the network's owner, from a backup",
		Long: `Restore the network's key from what "fwd owner export" printed, from FILE or standard
input, --json's line too. This machine then owns the network, and the one that did no
longer does.`,
		Example: "fwd owner import home.key",
		Annotations: map[string]string{
			partArgs:  "FILE\tthe backup; default standard input",
			partEnv:   passphraseEnv,
			partExits: "4",
		},
		Args: words(0, 1),
	}
	cmd.Flags().StringVar(&file, "passphrase-file", "", "read the passphrase from `FILE`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var text string
		var err error
		if len(args) == 1 {
			text, err = readSecret("backup", args[0])
		} else {
			text, err = a.readInput(cmd.Context())
		}
		if err != nil {
			return err
		}
		passphrase, err := a.passphrase(cmd.Context(), file, false)
		if err != nil {
			return err
		}
		return a.ask(cmd.Context(), daemon.OwnerImportRequest{Backup: backupIn(text), Passphrase: passphrase}, a.tell)
	}
	return cmd
}

func newOwnerMove(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "move PEER",
		Short: "hand the network's key over to another machine",
		Long: `Hand the network's key over to a machine of this network that is running. It owns the
network then, and this one is a member like others. Invites that are still open end.`,
		Example: "fwd owner move nas-box",
		Annotations: map[string]string{
			partArgs:  "PEER\tmachine name or peer ID, as \"fwd peers\" lists it",
			partExits: "3 4 6",
		},
		Args: words(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), daemon.OwnerMoveRequest{Peer: args[0]}, a.tell)
		},
	}
}

func newOwnerSign(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "sign",
		Short: "sign the roster anew, at this machine's time",
		Long: `Sign the roster as it is once more, on the owner, at the time that its clock shows now.
That corrects what was signed while the clock was wrong: otherwise no machine takes an
earlier time for right, so that a clock set back revives no access that has ended. So
see first that the clock is right.`,
		Annotations: map[string]string{partExits: "4"},
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), daemon.OwnerSignRequest{}, a.tell)
		},
	}
}

// passphrase reads it from a file, the environment, or the terminal, there twice if it
// is a new one.
func (a *app) passphrase(ctx context.Context, file string, twice bool) (string, error) {
	if file != "" {
		return readSecret("passphrase", file)
	}
	if p := os.Getenv("FWD_PASSPHRASE"); p != "" {
		return p, nil
	}
	if !a.mayPrompt() {
		return "", usageError("--passphrase-file FILE, or FWD_PASSPHRASE", "no passphrase, and no terminal to ask for one")
	}
	p, err := a.promptHidden(ctx, "passphrase: ")
	if err != nil {
		return "", err
	}
	if twice {
		again, err := a.promptHidden(ctx, "again: ")
		if err != nil {
			return "", err
		}
		if again != p {
			return "", usageError("", "the two passphrases differ")
		}
	}
	if p == "" {
		return "", usageError("", "an empty passphrase protects nothing")
	}
	return p, nil
}
