package watcher

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"sallyport/watcher/objects"

	_ "k8s.io/client-go/plugin/pkg/client/auth/oidc" // the one auth provider left; exec plugins are built in
)

// Requests of one edge to the API server: its watches, and the status of what it serves.
const (
	apiQPS   = 50
	apiBurst = 100
)

// Kubeconfig finds the API server as kubectl does: path (--kubeconfig), else the files of $KUBECONFIG merged, else
// ~/.kube/config, else the ServiceAccount of the pod that we run in. context, if not empty, is used in place of the
// file's current-context. origin says what was used, for the log. Errors name the file and what to do; no request is
// sent.
func Kubeconfig(path, context string) (_ *rest.Config, origin string, err error) {
	files, err := kubeconfigFiles(path)
	if err != nil {
		return nil, "", err
	}
	if len(files) == 0 {
		return inCluster()
	}
	origin = "kubeconfig " + strings.Join(files, ", ")
	merged, err := loadKubeconfig(files)
	if err != nil {
		return nil, "", err
	}
	if context == "" {
		context = merged.CurrentContext
	}
	if err := checkContext(merged, context); err != nil {
		return nil, "", fmt.Errorf("%s: %w", origin, err)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*merged, context, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("%s: context %q: %w", origin, context, err)
	}
	if u, err := url.Parse(config.Host); err == nil && u.User != nil { // the server is told in logs and views
		return nil, "", fmt.Errorf("%s: context %q: the URL of the server has a user in it: write username and password under users", origin, context)
	}
	if _, err := rest.TransportFor(config); err != nil { // reads the certificates
		return nil, "", fmt.Errorf("%s: context %q: %w", origin, context, err)
	}
	config.QPS, config.Burst = apiQPS, apiBurst
	return config, origin + ", context " + context, nil
}

// kubeconfigFiles are the files to load, or none if there is no kubeconfig at all.
func kubeconfigFiles(path string) ([]string, error) {
	if path != "" {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w: give an existing file by --kubeconfig", path, errors.Unwrap(err))
		}
		return []string{path}, nil
	}
	if list := os.Getenv(clientcmd.RecommendedConfigPathEnvVar); list != "" {
		all := slices.DeleteFunc(filepath.SplitList(list), func(f string) bool { return f == "" })
		there := slices.DeleteFunc(slices.Clone(all), func(f string) bool { return !exists(f) })
		if len(there) == 0 {
			return nil, fmt.Errorf("$KUBECONFIG names %s, none of which exists: correct it, unset it, or give a file by --kubeconfig",
				strings.Join(all, ", "))
		}
		return there, nil
	}
	if exists(clientcmd.RecommendedHomeFile) {
		return []string{clientcmd.RecommendedHomeFile}, nil
	}
	return nil, nil
}

// exists says whether there is something at path, readable or not.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

func inCluster() (_ *rest.Config, origin string, err error) {
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, "", fmt.Errorf("no kubeconfig: $KUBECONFIG is not set, %s does not exist, and this is not a pod: give a file by --kubeconfig",
			clientcmd.RecommendedHomeFile)
	}
	if err != nil {
		return nil, "", fmt.Errorf("no kubeconfig, and the pod's ServiceAccount cannot be used: %w", err)
	}
	config.QPS, config.Burst = apiQPS, apiBurst
	return config, "the pod's ServiceAccount", nil
}

// loadKubeconfig loads and merges the files; of two settings the first file's wins, as with kubectl.
func loadKubeconfig(files []string) (*clientcmdapi.Config, error) {
	for _, f := range files {
		if err := tryKubeconfig(f); err != nil {
			return nil, err
		}
	}
	rules := clientcmd.ClientConfigLoadingRules{Precedence: files}
	merged, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", strings.Join(files, ", "), err)
	}
	return merged, nil
}

// tryKubeconfig finds what is wrong with one file, whose name clientcmd's errors lack.
func tryKubeconfig(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", file, errors.Unwrap(err))
	}
	if _, err := clientcmd.Load(data); err != nil {
		line, why := objects.YAMLError(err)
		return fmt.Errorf("kubeconfig %v: not a kubeconfig: %s", objects.Position{File: file, Line: line}, why)
	}
	return nil
}

// checkContext finds what is wrong with the context before clientcmd, which has defaults for what is missing: it would
// talk to localhost:8080.
func checkContext(c *clientcmdapi.Config, name string) error {
	known := strings.Join(slices.Sorted(maps.Keys(c.Contexts)), ", ")
	switch {
	case len(c.Contexts) == 0:
		return errors.New("it has no contexts: is it a kubeconfig?")
	case name == "":
		return fmt.Errorf("it has no current-context: choose one by --context: %s", known)
	case c.Contexts[name] == nil:
		return fmt.Errorf("it has no context %q: choose one by --context: %s", name, known)
	}
	context := c.Contexts[name]
	cluster, user := c.Clusters[context.Cluster], c.AuthInfos[context.AuthInfo]
	switch {
	case cluster == nil:
		return fmt.Errorf("context %q names cluster %q, which it does not have", name, context.Cluster)
	case user == nil && context.AuthInfo != "":
		return fmt.Errorf("context %q names user %q, which it does not have", name, context.AuthInfo)
	case cluster.Server == "":
		return fmt.Errorf("cluster %q has no server", context.Cluster)
	}
	if user == nil {
		user = &clientcmdapi.AuthInfo{}
	}
	return errors.Join(
		checkFile("certificate-authority", "cluster", context.Cluster, cluster.CertificateAuthority),
		checkFile("client-certificate", "user", context.AuthInfo, user.ClientCertificate),
		checkFile("client-key", "user", context.AuthInfo, user.ClientKey),
		checkFile("tokenFile", "user", context.AuthInfo, user.TokenFile),
		checkPlugin(context.AuthInfo, user.Exec),
	)
}

// checkFile says whether a file that the kubeconfig names can be read. Relative names are resolved already.
func checkFile(key, section, name, file string) error {
	if file == "" {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%s of %s %q: %w", key, section, name, err)
	}
	return f.Close()
}

// checkPlugin says whether the user's exec plugin is installed.
func checkPlugin(user string, p *clientcmdapi.ExecConfig) error {
	if p == nil {
		return nil
	}
	if _, err := exec.LookPath(p.Command); err != nil {
		return fmt.Errorf("exec plugin of user %q: %w: install it. %s", user, err, p.InstallHint)
	}
	return nil
}
