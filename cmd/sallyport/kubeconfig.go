package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"sallyport/watcher"
)

// credentialRequest says whose kubeconfig is wanted.
type credentialRequest struct {
	kubeconfig string // the administrator's; empty: as kubectl finds it
	context    string
	server     string // the API server's URL as the edges reach it; empty: the administrator's
	namespace  string
	account    string // ServiceAccount
	duration   time.Duration
	output     string // file; empty: standard output
	force      bool
}

func newKubeconfig() *cobra.Command {
	var r credentialRequest
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Make the kubeconfig of an edge from an administrator's",
		Long: `Ask the API server, as an administrator, for a token of the edges' ServiceAccount, write a kubeconfig with it, and say what
the account may not do that an edge does. The token expires: run this again before it does. A running edge follows its file.`,
		Example: `  kubectl apply -f deploy/rbac/base.yaml -f deploy/rbac/status.yaml
  sallyport kubeconfig -o edge.kubeconfig
  sallyport kubeconfig --kubeconfig admin.conf --server https://192.0.2.1:6443 --duration 2160h -o edge.kubeconfig --force`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	s := cmd.Flags()
	s.StringVar(&r.kubeconfig, "kubeconfig", "", "the administrator's kubeconfig `file` (default: $KUBECONFIG, ~/.kube/config)")
	s.StringVar(&r.context, "context", "", "kubeconfig `context` (default: its current-context)")
	s.StringVar(&r.server, "server", "", "`URL` of the API server as edges reach it (default: the administrator's)")
	s.StringVar(&r.namespace, "namespace", "sallyport", "`namespace` of the ServiceAccount")
	s.StringVar(&r.account, "serviceaccount", "edge", "`name` of the ServiceAccount")
	s.DurationVar(&r.duration, "duration", 365*24*time.Hour, "how long the token is to be valid; the API server may grant less")
	s.StringVarP(&r.output, "output", "o", "", "`file` to write, mode 0600 (default: standard output)")
	s.BoolVar(&r.force, "force", false, "replace the file, keeping its owner and group")
	return cmd
}

// run writes the kubeconfig to the file or out, and what there is to know to notes.
func (r credentialRequest) run(ctx context.Context, out, notes io.Writer) error {
	if err := r.checkOutput(); err != nil {
		return err
	}
	admin, _, err := watcher.Kubeconfig(r.kubeconfig, r.context)
	if err != nil {
		return err
	}
	if err := r.prepare(admin); err != nil {
		return err
	}
	token, err := r.token(ctx, admin)
	if err != nil {
		return err
	}
	fmt.Fprintf(notes, "the token expires %s\n", token.ExpirationTimestamp.UTC().Format(time.RFC3339))
	data, err := clientcmd.Write(*r.config(admin, token.Token))
	if err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	if err := r.write(out, data); err != nil {
		return err
	}
	if h := loopbackHost(r.serverOf(admin)); h != "" {
		fmt.Fprintf(notes, "the API server is named by %s, which other machines do not reach: give the address that they reach by --server\n", h)
	}
	return r.review(ctx, admin, token.Token, notes)
}

// checkOutput refuses before a token is made what write would refuse after.
func (r credentialRequest) checkOutput() error {
	if r.output == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(r.output)); err != nil {
		return fmt.Errorf("write %s: %w", r.output, err)
	}
	info, err := os.Lstat(r.output)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a folder: name a file in it", r.output)
	case !r.force:
		return fmt.Errorf("%s exists: --force replaces it", r.output)
	}
	return nil
}

// prepare makes what config takes over from the administrator's connection complete, and refuses one that does not
// verify the server: an edge would give its token to whoever answers.
func (r credentialRequest) prepare(admin *rest.Config) error {
	if admin.Insecure {
		return fmt.Errorf("the administrator's kubeconfig has insecure-skip-tls-verify for %s: give it the certificate-authority-data of the cluster", admin.Host)
	}
	if err := rest.LoadTLSFiles(admin); err != nil {
		return fmt.Errorf("read the certificate authority of %s: %w", admin.Host, err)
	}
	if u, err := url.Parse(r.serverOf(admin)); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("server %q is not a URL such as https://192.0.2.1:6443", r.serverOf(admin))
	}
	return nil
}

func (r credentialRequest) serverOf(admin *rest.Config) string {
	if r.server != "" {
		return r.server
	}
	return admin.Host
}

// token asks for a token of the ServiceAccount (TokenRequest, authentication.k8s.io/v1).
func (r credentialRequest) token(ctx context.Context, admin *rest.Config) (authenticationv1.TokenRequestStatus, error) {
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return authenticationv1.TokenRequestStatus{}, fmt.Errorf("make a client for %s: %w", admin.Host, err)
	}
	seconds := int64(r.duration / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	answer, err := client.CoreV1().ServiceAccounts(r.namespace).CreateToken(ctx, r.account, request, metav1.CreateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return authenticationv1.TokenRequestStatus{}, fmt.Errorf("ServiceAccount %s/%s: %w: make it by kubectl apply -f deploy/rbac/base.yaml -f deploy/rbac/status.yaml",
			r.namespace, r.account, err)
	case err != nil:
		return authenticationv1.TokenRequestStatus{}, fmt.Errorf("ask for a token of ServiceAccount %s/%s: %w", r.namespace, r.account, err)
	}
	return answer.Status, nil
}

// config is the kubeconfig of the account: the administrator's server and certificate authority, and the token.
func (r credentialRequest) config(admin *rest.Config, token string) *clientcmdapi.Config {
	c := clientcmdapi.NewConfig()
	c.Clusters["kubernetes"] = &clientcmdapi.Cluster{
		Server: r.serverOf(admin), TLSServerName: admin.ServerName, CertificateAuthorityData: admin.CAData,
	}
	c.AuthInfos[r.account] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts[r.account] = &clientcmdapi.Context{Cluster: "kubernetes", AuthInfo: r.account}
	c.CurrentContext = r.account
	return c
}

// write puts the file in place whole, as a running edge may be reading it.
func (r credentialRequest) write(out io.Writer, data []byte) error {
	if r.output == "" {
		_, err := out.Write(data)
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(r.output), filepath.Base(r.output)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", r.output, err)
	}
	_, err = temp.Write(data)
	err = errors.Join(err, inherit(temp, r.output), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), r.output)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", r.output, err), os.Remove(temp.Name()))
	}
	return nil
}

// inherit gives a file the owner and group of the one at path, which it is to replace, and lets the group read it if it
// could: that is how the service reads a file of root's.
func inherit(file *os.File, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if old, ok := info.Sys().(*syscall.Stat_t); ok {
		err = file.Chown(int(old.Uid), int(old.Gid))
	}
	return errors.Join(err, file.Chmod(info.Mode().Perm()&0o640))
}

// loopbackHost is the host of a URL that only the machine itself reaches, or empty.
func loopbackHost(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	host := u.Hostname()
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		return host
	}
	return ""
}

// A grant is what one rule of deploy/rbac permits.
type grant struct {
	group, resource, subresource, name string
	verbs                              string // separated by spaces
	leases                             bool   // in the namespace of the Lease rather than in all
	file                               string // of deploy/rbac
}

// grants are what an edge asks for, beside Secrets, whose extent is the operator's choice.
var grants = []grant{
	{resource: "services", verbs: "list watch", file: "base.yaml"},
	{resource: "nodes", verbs: "list watch", file: "base.yaml"},
	{resource: "namespaces", verbs: "list watch", file: "base.yaml"},
	{group: "discovery.k8s.io", resource: "endpointslices", verbs: "list watch", file: "base.yaml"},
	{group: "networking.k8s.io", resource: "ingresses", verbs: "list watch", file: "base.yaml"},
	{group: "networking.k8s.io", resource: "ingressclasses", verbs: "list watch", file: "base.yaml"},
	{resource: "services", subresource: "status", verbs: "patch", file: "status.yaml"},
	{group: "networking.k8s.io", resource: "ingresses", subresource: "status", verbs: "patch", file: "status.yaml"},
	{resource: "events", verbs: "create patch", file: "status.yaml"},
	{group: "coordination.k8s.io", resource: "leases", name: "sallyport", verbs: "get update", leases: true, file: "status.yaml"},
	{group: "coordination.k8s.io", resource: "leases", verbs: "create", leases: true, file: "status.yaml"},
}

// everySecret is what an edge is better off without.
var everySecret = grant{resource: "secrets", verbs: "list"}

// review asks the API server, with the new token, for each grant (SelfSubjectAccessReview) and says what is missing.
func (r credentialRequest) review(ctx context.Context, admin *rest.Config, token string, notes io.Writer) error {
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken = token
	config.QPS = -1 // a few requests, once
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client for %s: %w", admin.Host, err)
	}
	for _, g := range slices.Concat(grants, []grant{everySecret}) {
		for verb := range strings.FieldsSeq(g.verbs) {
			allowed, err := r.may(ctx, client, g, verb)
			switch {
			case err != nil:
				return fmt.Errorf("ask what ServiceAccount %s/%s may do: %w", r.namespace, r.account, err)
			case allowed && g == everySecret:
				fmt.Fprintln(notes, "it may read every Secret of the cluster, which only secrets: cluster needs (deploy/SECURITY.md)")
			case !allowed && g != everySecret:
				fmt.Fprintf(notes, "missing: it may not %s %s: kubectl apply -f deploy/rbac/%s\n", verb, g.path(), g.file)
			}
		}
	}
	return nil
}

// path is the resource as RBAC names it.
func (g grant) path() string {
	if g.subresource == "" {
		return g.resource
	}
	return g.resource + "/" + g.subresource
}

func (r credentialRequest) may(ctx context.Context, client kubernetes.Interface, g grant, verb string) (bool, error) {
	a := authorizationv1.ResourceAttributes{Verb: verb, Group: g.group, Resource: g.resource, Subresource: g.subresource, Name: g.name}
	if g.leases {
		a.Namespace = r.namespace
	}
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &a}}
	answer, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}
